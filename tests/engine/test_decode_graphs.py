"""Recorded decode steps, with a stand-in that records as a CUDA graph does: addresses, no numbers.

Everything but `torch.cuda.graph` itself runs here: what is recorded may not read a number back to
the host, and is run again on the same static tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lmtp_replicate.engine.attention import Scores
from lmtp_replicate.engine.decode_attention import GatheredAttention, Reads
from lmtp_replicate.engine.decode_graphs import DecodeGraphs
from lmtp_replicate.engine.proof import prove
from lmtp_replicate.engine.settings import EngineSettings
from lmtp_replicate.engine.torch_engine import TorchEngine
from lmtp_replicate.protocol.messages import Generate
from tests.engine.oracle import Oracle
from tests.engine.running import answers
from tests.engine.test_oracle import mix, oracle
from tests.engine.tiny_models import VOCABULARY, tiny_loaded, tiny_network


class NoWaiting(TorchDispatchMode):
    """Refuses what would make a host wait for its device: numbers read back, shapes that depend on
    numbers, and tensors made from Python's."""

    FORBIDDEN = ("item", "_local_scalar_dense", "is_nonzero", "nonzero", "lift_fresh", "equal")

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name in self.FORBIDDEN:
            raise RuntimeError(f"{name} makes the host wait for the device")
        return function(*args, **(kwargs or {}))


class Tape:
    """A stand-in for `CudaCapture`. Fails from the `failing`-th recording on."""

    def __init__(self, failing: int | None = None) -> None:
        self.recorded = 0
        self._failing = failing

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        if self.recorded == self._failing:
            raise RuntimeError("out of tape")
        self.recorded += 1
        with NoWaiting():
            work()
        return work


def engine_with(name: str, tape: Tape, **settings: Any) -> TorchEngine:
    settings = {"decode_graphs": True} | settings
    return TorchEngine(tiny_loaded(name), EngineSettings(**settings), tape)


def replayed(engine: TorchEngine) -> int:
    graphs = engine._loop._model
    assert isinstance(graphs, DecodeGraphs)
    return graphs.replayed


RECORDABLE = ("llama", "qwen3", "gemma3_text", "gemma2", "phi3", "gpt2", "opt")


@pytest.mark.parametrize("name", RECORDABLE)
def test_recorded_steps_equal_the_oracle(name: str) -> None:
    """Windows, soft caps and changing numbers of streams, and so rows that are nobody's."""
    random = Random(name)
    for settings in ({"max_streams": 5, "chunk_tokens": 7}, {"max_streams": 16}):
        engine = engine_with(name, Tape(), page_tokens=4, **settings)
        try:
            card = engine.info()
            assert card.details["decode"] == "recorded", card.details["decode_reason"]
            judge = oracle(name, engine)
            for answer, cancelled in mix(engine, random, 14):
                judge.check(answer.op, answer.items, cancelled=cancelled)
            together = [Generate(n, (n, n + 1), 12, top_logprobs=2) for n in range(5)]
            for answer in answers(engine, together):
                judge.check(answer.op, answer.items)
            assert replayed(engine) > 0
        finally:
            engine.close()
        judge.assert_few_ties()


def test_a_full_memory_and_the_last_place_of_it() -> None:
    """Streams are moved and paused, and one lies at the very end of the pool."""
    engine = engine_with("llama", Tape(), page_tokens=4)
    per_token = engine.info().details["kv_bytes_per_token"]
    engine.close()
    engine = engine_with("llama", Tape(), page_tokens=4, kv_cache_bytes=64 * per_token)
    try:
        judge = oracle("llama", engine)
        ops = [Generate(n, tuple(range(n + 1, n + 9)), 40) for n in range(6)]
        for answer in answers(engine, ops):
            judge.check(answer.op, answer.items)
        assert engine.info().details["pauses"] > 0
        assert replayed(engine) > 0
    finally:
        engine.close()


def test_a_model_that_waits_for_its_device_is_not_recorded() -> None:
    """A mixture of experts looks how many tokens each expert got."""
    network = tiny_network("llama")

    def look(_module: Any, _args: Any, output: Any) -> None:
        assert output.sum().item() is not None

    network.model.layers[0].mlp.register_forward_hook(look)
    engine = TorchEngine(tiny_loaded("llama", network), EngineSettings(decode_graphs=True), Tape())
    try:
        details = engine.info().details
        assert details["decode"] == "run"
        assert "item makes the host wait" in details["decode_reason"]
        judge = Oracle(tiny_network("llama"), tiny_loaded("llama"), limit=256)
        for answer in answers(engine, [Generate(1, (3, 4), 9)]):
            judge.check(answer.op, answer.items)
    finally:
        engine.close()


class WithoutWindow(GatheredAttention):
    """Looks at all tokens, whatever the layer's window."""

    def attend(self, query: Any, keys: Any, values: Any, reads: Any, scores: Any) -> Any:
        wrong = type(scores)(scores.scaling, None, scores.softcap, scores.sinks)
        return super().attend(query, keys, values, reads, wrong)


def test_an_attention_that_computes_something_else_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lmtp_replicate.engine.proof.GatheredAttention", WithoutWindow)
    verdict = prove(tiny_network("gemma3_text"), VOCABULARY, 256, capture=Tape())
    assert verdict.path == "packed"
    assert verdict.decode is None
    assert "differ from the model's own eager forward" in verdict.decode_reason


def test_a_warm_up_that_fails_leaves_the_engine_as_it_was_without() -> None:
    engine = engine_with("llama", Tape(failing=2))
    try:
        details = engine.info().details
        assert details["decode"] == "run"
        assert "the warm-up failed: RuntimeError: out of tape" in details["decode_reason"]
        assert len(answers(engine, [Generate(1, (3, 4), 3)])[0].wait()) <= 3
    finally:
        engine.close()


@pytest.mark.parametrize("works", [True, False])
def test_what_is_not_recorded_at_start_is_at_its_first_use_or_is_run(works: bool) -> None:
    """One recording for the proof, those for up to 1024 tokens, and one for more."""
    network = tiny_network("gpt2", n_positions=4096)
    tape = Tape(failing=None if works else 3)
    loaded = tiny_loaded("gpt2", network, context_length=4096)
    engine = TorchEngine(loaded, EngineSettings(max_streams=1, decode_graphs=True), tape)
    try:
        assert engine.info().details["decode"] == "recorded"
        assert tape.recorded == 3
        (answer,) = answers(engine, [Generate(1, (3,) * 1023, 5)])
        judge = Oracle(tiny_network("gpt2", n_positions=4096), loaded, limit=4096)
        judge.check(answer.op, answer.items)
        assert tape.recorded == (4 if works else 3)
    finally:
        engine.close()


def test_recording_can_be_switched_off_and_needs_a_gpu() -> None:
    tape = Tape()
    engine = engine_with("llama", tape, decode_graphs=False)
    assert engine.info().details["decode_reason"] == "they are switched off"
    assert tape.recorded == 0
    engine.close()
    engine = TorchEngine(tiny_loaded("llama"), EngineSettings(decode_graphs=True))
    assert engine.info().details["decode_reason"] == "the model is not on a CUDA device"
    engine.close()


def test_a_strangers_broken_numbers_do_not_get_into_an_answer() -> None:
    """Neither those behind a stream's own tokens nor those before its window."""
    places, dim = 40, 8
    keys, values = (torch.full((places, 2, dim), torch.nan) for _ in range(2))
    keys[8:12], values[8:12] = 1.0, 2.0
    reads = Reads(torch.tensor([8]), torch.tensor([4]), span=256)
    for window in (None, 3):
        scores = Scores(1.0, window, None, None)
        seen = GatheredAttention().attend(torch.ones(1, 4, dim), keys, values, reads, scores)
        assert torch.equal(seen, torch.full((1, 4, dim), 2.0))
