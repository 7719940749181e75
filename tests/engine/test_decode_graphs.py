"""Recorded decode steps, with a stand-in that records as a CUDA graph does: addresses, no numbers.

Everything but `torch.cuda.graph` itself runs here: what is recorded may not read a number back to
the host, and is run again on the same static tensors.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from lmtp_replicate.engine.attention import Scores
from lmtp_replicate.engine.decode_attention import DecodeAttention, GatheredAttention, Reads
from lmtp_replicate.engine.decode_graphs import Capture, DecodeGraphs
from lmtp_replicate.engine.flex_decode import FlexDecodeAttention
from lmtp_replicate.engine.plan import Plan
from lmtp_replicate.engine.proof import prove
from lmtp_replicate.engine.settings import EngineSettings
from lmtp_replicate.engine.tables import Tables
from lmtp_replicate.engine.torch_engine import TorchEngine
from lmtp_replicate.protocol.messages import Generate, Score
from tests.engine.oracle import Oracle
from tests.engine.running import Answer, answers
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
    """A stand-in for `CudaCapture`. After `failing` recordings, the next `failures` fail."""

    def __init__(self, failing: int | None = None, failures: int = 10**6) -> None:
        self.recorded = 0
        self._failing = failing
        self._failures = failures

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        if self.recorded == self._failing and self._failures:
            self._failures -= 1
            raise RuntimeError("out of tape")
        self.recorded += 1
        with NoWaiting():
            work()
        return work


def again(work: Callable[[], None]) -> Callable[[], None]:
    """A stand-in that refuses nothing: torch's modes do not know FlexAttention."""
    work()
    return work


def engine_with(name: str, capture: Capture, **settings: Any) -> TorchEngine:
    settings = {"decode_graphs": True, "share_pages": True} | settings
    return TorchEngine(tiny_loaded(name), EngineSettings(**settings), capture)


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


def test_decoding_streams_are_replayed_beside_prompts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_with("llama", Tape(), page_tokens=4, chunk_tokens=7)
    graphs = engine._loop._model
    assert isinstance(graphs, DecodeGraphs)
    forward, replayed_beside = graphs.forward, []

    def watched(plan: Plan) -> torch.Tensor:
        before = graphs.replayed
        logits = forward(plan)
        if 0 < plan.decoding < len(plan.works):
            replayed_beside.append(graphs.replayed - before)
        return logits

    monkeypatch.setattr(graphs, "forward", watched)
    try:
        later = [Answer(Score(8, (1, 2), tuple(range(40)))), Answer(Generate(9, (9,) * 50, 6))]
        first = [Answer(Generate(n, (n, 3), 30, top_logprobs=2)) for n in range(3)]
        first[0].after[3] = lambda: [engine.submit(answer.op, answer) for answer in later]
        for answer in first:
            engine.submit(answer.op, answer)
        judge = oracle("llama", engine)
        for answer in (*first, *later):
            judge.check(answer.op, answer.wait())
    finally:
        engine.close()
    assert len(replayed_beside) > 5
    assert set(replayed_beside) == {1}


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


def offer(monkeypatch: pytest.MonkeyPatch, *attentions: DecodeAttention) -> None:
    """To the proof, in place of what the device may have."""
    monkeypatch.setattr("lmtp_replicate.engine.proof.decode_attentions", lambda _: attentions)


class WithoutWindow(GatheredAttention):
    """Looks at all tokens, whatever the layer's window."""

    def attend(self, query: Any, keys: Any, values: Any, reads: Any, scores: Any) -> Any:
        wrong = type(scores)(scores.scaling, None, scores.softcap, scores.sinks)
        return super().attend(query, keys, values, reads, wrong)


def test_an_attention_that_computes_something_else_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offer(monkeypatch, WithoutWindow())
    verdict = prove(tiny_network("gemma3_text"), VOCABULARY, 256, kind=Tables, capture=Tape())
    assert verdict.path == "packed"
    assert not verdict.decode
    assert "differ from the model's own eager forward" in verdict.decode_reason


def test_a_warm_up_that_fails_leaves_the_engine_as_it_was_without() -> None:
    engine = engine_with("llama", Tape(failing=1))
    try:
        details = engine.info().details
        assert details["decode"] == "run"
        assert "the warm-up failed: RuntimeError: out of tape" in details["decode_reason"]
        assert len(answers(engine, [Generate(1, (3, 4), 3)])[0].wait()) <= 3
    finally:
        engine.close()


def test_a_step_that_cannot_be_recorded_is_run_and_the_others_are_replayed() -> None:
    """The first recording at start, after the proof's, is for 4 streams; 2 and 1 follow."""
    tape = Tape(failing=1, failures=1)
    engine = engine_with("llama", tape, max_streams=4)
    try:
        assert engine.info().details["decode"] == "recorded"
        assert tape.recorded == 3
        judge = oracle("llama", engine)
        for streams in (4, 1):
            for answer in answers(engine, [Generate(n, (3, n), 9) for n in range(streams)]):
                judge.check(answer.op, answer.items)
        assert replayed(engine) > 0
        assert tape.recorded == 3, "it is not tried again and again"
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


@pytest.mark.parametrize(("context", "span"), [(4096, 2048), (1100, 1104)])
def test_a_late_recording_looks_at_twice_the_streams_tokens_at_most(
    context: int, span: int, caplog: pytest.LogCaptureFixture
) -> None:
    """And no longer than the context, in whole pages."""
    network = tiny_network("gpt2", n_positions=context)
    loaded = tiny_loaded("gpt2", network, context_length=context)
    with caplog.at_level(logging.INFO):
        engine = TorchEngine(loaded, EngineSettings(max_streams=1, decode_graphs=True), Tape())
        answers(engine, [Generate(1, (3,) * 1023, 5)])
        engine.close()
    assert f"Steps of 1 streams and {span} tokens of each" in caplog.text


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
    reads = Reads(torch.tensor([[4, 5, 5, 5]]), torch.tensor([4]), page_tokens=2)
    for window in (None, 3):
        scores = Scores(1.0, window, None, None)
        seen = GatheredAttention().attend(torch.ones(1, 4, dim), keys, values, reads, scores)
        assert torch.equal(seen, torch.full((1, 4, dim), 2.0))


class Slow(GatheredAttention):
    """The same, much later."""

    name = "slow"

    def attend(self, *args: Any) -> Any:
        time.sleep(0.05)
        return super().attend(*args)


class Unrecordable(GatheredAttention):
    """Waits for its device, but not while it is on trial."""

    name = "unrecordable"

    def attend(self, query: Any, *args: Any) -> Any:
        if query.shape[0] != 4:  # the proof's
            query.sum().item()
        return super().attend(query, *args)


def test_each_step_is_recorded_with_the_attention_that_is_the_fastest(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    offer(monkeypatch, Slow(), Unrecordable(), GatheredAttention())
    with caplog.at_level(logging.INFO):
        engine = engine_with("llama", Tape(), max_streams=1)
    try:
        assert engine.info().details["decode"] == "recorded"
        chosen = [
            r.getMessage() for r in caplog.records if r.getMessage().startswith("Steps of 1 ")
        ]
        assert len(chosen) == 1
        assert all(message.endswith("gathered attention") for message in chosen)
        assert "No recording with unrecordable attention: item makes the host wait" in caplog.text
        judge = oracle("llama", engine)
        for answer in answers(engine, [Generate(1, (3, 4), 9)]):
            judge.check(answer.op, answer.items)
    finally:
        engine.close()


class Compiled(GatheredAttention):
    """Stands for one that a compiler has made."""

    name = "compiled"
    is_compiled = True


class NeverCompiled(Unrecordable):
    """One that no compiler makes, as the first recordings show."""

    name = "never compiled"
    is_compiled = True


def test_while_streams_wait_nothing_is_compiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What has been at the start is tried again, for longer streams."""
    offer(monkeypatch, Slow(), NeverCompiled(), Compiled())
    network = tiny_network("gpt2", n_positions=4096)
    loaded = tiny_loaded("gpt2", network, context_length=4096)
    with caplog.at_level(logging.INFO):
        engine = TorchEngine(loaded, EngineSettings(max_streams=1, decode_graphs=True), Tape())
        try:
            assert caplog.text.count("No recording with never compiled attention") == 2
            caplog.clear()
            answers(engine, [Generate(1, (3,) * 1023, 5)])
        finally:
            engine.close()
    assert "tokens of each: compiled attention" in caplog.text
    assert "never compiled" not in caplog.text


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_steps_recorded_with_flex_attention_equal_the_oracle(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, FlexDecodeAttention(flex_attention))
    engine = engine_with(name, again, page_tokens=4, max_streams=4)
    try:
        details = engine.info().details
        assert details["decode"] == "recorded", details["decode_reason"]
        judge = oracle(name, engine)
        prompt = tuple(range(1, 30))
        for answer in answers(engine, [Generate(n, (*prompt, n), 12) for n in range(3)]):
            judge.check(answer.op, answer.items)
        assert replayed(engine) > 0
    finally:
        engine.close()
