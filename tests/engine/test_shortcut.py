"""A model in one call: transformers' own numbers to the last bit, or not at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from lmtp_replicate.engine.packed import PackedModel
from lmtp_replicate.engine.pages import PagePool
from lmtp_replicate.engine.plan import Plan, Work
from lmtp_replicate.engine.proof import Verdict, prove
from lmtp_replicate.engine.shortcut import Shortcut
from lmtp_replicate.engine.spans import Spans
from lmtp_replicate.engine.stream import Stream
from lmtp_replicate.protocol.messages import Generate, Score
from tests.engine.bfloat16 import packs_bfloat16
from tests.engine.oracle import Oracle
from tests.engine.running import answers, running
from tests.engine.test_layer_stack import KINDS, network_of
from tests.engine.tiny_models import VOCABULARY, tiny_loaded, tiny_network

pytestmark = pytest.mark.usefixtures("has_compiler")

CONTEXT = 256


def proved(network: nn.Module, context: int = CONTEXT) -> Verdict:
    return prove(network, VOCABULARY, context)  # type: ignore[arg-type]


def shortcut_of(network: nn.Module, context: int = CONTEXT) -> tuple[Verdict, Shortcut]:
    """Skips where the CPU has no kernel of ours for such a model."""
    verdict = proved(network, context)
    if verdict.forward[1] == "it has other parts than Llama's, or some that are not compiled":
        pytest.skip("this CPU has no kernel of ours for the head")
    assert verdict.shortcut is not None
    assert verdict.forward == ("compiled", "it agrees with transformers' forward, bit for bit")
    return verdict, verdict.shortcut


def logits(
    network: Any,
    verdict: Verdict,
    shortcut: Shortcut | None,
    chunks: list[int],
    prompts: tuple[int, int] = (1, 1),
) -> list[Tensor]:
    """Of two streams, of which each step runs a chunk each, the second one's first."""
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(VOCABULARY, (2, sum(chunks) + 1), generator=random)
    pool: PagePool = Spans(512, 16)
    streams = []
    for index, (row, prompt) in enumerate(zip(ids.tolist(), prompts, strict=True)):
        op = Score(index, tuple(row[:prompt]), tuple(row[prompt:]))
        streams.append(Stream(op, op.prompt, limit=len(row)))
        streams[-1].place = pool.take(len(row))
    model = PackedModel(network, pool, verdict.attention, shortcut)
    steps = []
    with torch.inference_mode():
        for size in chunks:
            works = [Work(stream, stream.cached, size) for stream in reversed(streams)]
            steps.append(model.forward(Plan(works=works)).clone())
            for work in works:
                work.stream.cached = work.stop
    return steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompts", [(1, 1), (10, 41), (42, 12), (43, 43)])
def test_the_numbers_are_transformers(
    kind: str, dtype: torch.dtype, prompts: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of which all, some and no logits are wanted, one of few tokens, one of many."""
    if dtype == torch.bfloat16 and not packs_bfloat16():
        pytest.skip("bfloat16 is not packed on this CPU")
    network = network_of(kind, dtype)
    verdict, shortcut = shortcut_of(network)
    chunks = [1, 30, 1, 9, 1, 1]
    whole = logits(network, verdict, None, chunks, prompts)
    monkeypatch.setattr(network, "forward", None)  # from now on nobody calls it
    for found, right in zip(
        logits(network, verdict, shortcut, chunks, prompts), whole, strict=True
    ):
        assert torch.equal(found, right)


def test_positions_far_behind_those_of_the_proof() -> None:
    network = network_of("llama", max_position_embeddings=4096)
    verdict, shortcut = shortcut_of(network, 4096)
    chunks = [600, 1, 500, 1, 1200, 1]
    prompts = 2290, 1100
    right = logits(network, verdict, None, chunks, prompts)
    for found, expected in zip(
        logits(network, verdict, shortcut, chunks, prompts), right, strict=True
    ):
        assert torch.equal(found, expected)


def test_no_angles_are_asked_for_beyond_the_context() -> None:
    """There some embeddings change those of all positions."""
    network = network_of("llama", max_position_embeddings=4096)
    asked: list[int] = []
    plain = network.model.rotary_emb.forward

    def forward(x: Tensor, position_ids: Tensor) -> Any:
        asked.append(int(position_ids.max()))
        return plain(x, position_ids)

    network.model.rotary_emb.forward = forward
    verdict, shortcut = shortcut_of(network, 1100)
    logits(network, verdict, shortcut, [600, 499, 1])
    assert max(asked) == 1099


class Scaled(LlamaForCausalLM):
    """Does more than its parts: what Cohere's do with logits."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 0.5
        return output


def test_a_model_that_does_more_is_run_as_before() -> None:
    network = network_of("llama")
    network.__class__ = Scaled
    verdict = proved(network)
    assert verdict.path == "packed"
    assert verdict.layers[0] == "compiled"
    assert verdict.forward == ("transformers", "it does more than its parts do")
    assert verdict.shortcut is None


@pytest.mark.parametrize(
    "part", [lambda n: n, lambda n: n.model, lambda n: n.model.norm, lambda n: n.lm_head]
)
def test_hooks_are_called(part: Any) -> None:
    network = network_of("llama")
    part(network).register_forward_hook(lambda *call: None)
    verdict = proved(network)
    assert verdict.shortcut is None
    assert verdict.forward[0] == "transformers"


def test_an_embedding_of_another_kind() -> None:
    """As Gemma's, which multiplies what it finds."""

    class Other(nn.Embedding):
        pass

    network = network_of("llama")
    network.model.embed_tokens.__class__ = Other
    assert proved(network).shortcut is None


def test_ids_that_only_the_head_has() -> None:
    network = network_of("llama")
    rows = network.model.embed_tokens.weight[:-1].clone()
    network.model.embed_tokens = nn.Embedding.from_pretrained(rows)
    assert prove(network, VOCABULARY - 1, CONTEXT).shortcut is None


def test_where_layers_are_transformers_so_is_the_forward() -> None:
    verdict = prove(network_of("llama"), VOCABULARY, CONTEXT, compile_kernels=False)
    assert verdict.forward == ("transformers", "its layers are not compiled")
    assert verdict.shortcut is None


def test_model_info_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    plain = Shortcut.run

    def run(self: Shortcut, layout: Any, step: Any) -> Tensor:
        runs.append(len(layout.addresses))
        return plain(self, layout, step)

    monkeypatch.setattr(Shortcut, "run", run)
    with running(tiny_loaded("llama")) as engine:
        details = engine.info().details
        if details["forward"] != "compiled":
            pytest.skip("this CPU has no kernel of ours for the head")
        runs.clear()  # those of the proof
        judge = Oracle(tiny_network("llama"), tiny_loaded("llama"), 256)
        for answer in answers(engine, [Generate(1, (1, 2, 3), 5)]):
            judge.check(answer.op, answer.items)
        assert runs == [3, 1, 1, 1, 1]
        assert details["forward_reason"] == "it agrees with transformers' forward, bit for bit"
