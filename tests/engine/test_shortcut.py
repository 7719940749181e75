"""A model in one call: transformers' own numbers to the last bit, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaModel, LlamaRotaryEmbedding

from lmtp_replicate.engine.compiled_attention import CompiledAttention
from lmtp_replicate.engine.proof import prove
from lmtp_replicate.engine.shortcut import Shortcut
from lmtp_replicate.protocol.messages import Generate
from tests.engine.bfloat16 import packs_bfloat16
from tests.engine.oracle import Oracle
from tests.engine.running import answers, running
from tests.engine.test_layer_stack import KINDS, logits, network_of, stack_of
from tests.engine.tiny_models import VOCABULARY, tiny_loaded, tiny_network

pytestmark = pytest.mark.usefixtures("has_compiler")

CONTEXT = 256
FEW = "its kernels take too few tokens"
TIED = {"tie_word_embeddings": True}


def proved(network: Any, context: int = CONTEXT) -> tuple[CompiledAttention, Shortcut | None, str]:
    verdict = prove(network, VOCABULARY, context)
    assert verdict.path == "packed"
    assert verdict.attention is not None
    assert verdict.layers[0] == "compiled"
    return verdict.attention, verdict.shortcut, verdict.forward_reason


def shortcut_of(network: Any, context: int = CONTEXT) -> tuple[CompiledAttention, Shortcut]:
    attention, shortcut, why = proved(network, context)
    if stack_of(network).most_tokens == 0:
        pytest.skip("this CPU has no kernel of ours for these layers")
    assert shortcut is not None, why
    assert why == "it agrees with transformers' forward, bit for bit"
    return attention, shortcut


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The numbers of tokens of all steps that shortcuts run."""
    runs: list[int] = []
    plain = Shortcut.run

    def run(self: Shortcut, layout: Any, step: Any) -> Tensor:
        runs.append(len(layout.addresses))
        return plain(self, layout, step)

    with patch.context() as patched:
        patched.setattr(Shortcut, "run", run)
        yield runs


def assert_equal(steps: list[Tensor], expected: list[Tensor]) -> None:
    for found, right in zip(steps, expected, strict=True):
        assert torch.equal(found, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "changed"), [*((kind, {}) for kind in KINDS), ("llama", TIED)], ids=[*KINDS, "tied"]
)
@pytest.mark.parametrize("prompts", [(1, 1), (10, 41), (42, 12), (43, 43)])
def test_the_numbers_are_transformers(
    kind: str,
    changed: dict[str, Any],
    dtype: torch.dtype,
    prompts: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps of which all, some and no logits are wanted, one of few tokens, one of many."""
    if dtype == torch.bfloat16 and not packs_bfloat16():
        pytest.skip("bfloat16 is not packed on this CPU")
    network = network_of(kind, dtype, **changed)
    attention, shortcut = shortcut_of(network)
    chunks = [1, 30, 1, 9, 1, 1]
    right = logits(network, attention, chunks, prompts)
    with counted(monkeypatch) as runs:
        assert_equal(logits(network, attention, chunks, prompts, shortcut), right)
    takes_long = attention.longest >= 30 or attention.long is not None
    if stack_of(network).most_tokens >= 60 and takes_long:
        assert runs == [2 * size for size in chunks]
    assert 2 in runs


def test_positions_behind_those_of_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """And behind those of the first table of angles, and of the second."""
    network = network_of("llama", max_position_embeddings=4096)
    attention, shortcut = shortcut_of(network, 4096)
    chunks, prompts = [600, 1, 500, 1, 1200, 1], (2290, 1100)
    right = logits(network, attention, chunks, prompts)
    with counted(monkeypatch) as runs:
        assert_equal(logits(network, attention, chunks, prompts, shortcut), right)
    assert runs.count(2) == 3


class Asked(LlamaRotaryEmbedding):
    positions: list[int]

    def forward(self, x: Tensor, position_ids: Tensor) -> Any:
        self.positions.append(int(position_ids.max()))
        return super().forward(x, position_ids)


def test_no_angles_are_asked_for_beyond_the_context() -> None:
    """There some embeddings change those of all positions."""
    network = network_of("llama", max_position_embeddings=4096)
    network.model.rotary_emb.__class__ = Asked
    network.model.rotary_emb.positions = asked = []
    attention, shortcut = shortcut_of(network, 1100)
    logits(network, attention, [600, 499, 1], shortcut=shortcut)
    assert max(asked) == 1099


def test_positions_beyond_the_context_are_left_to_transformers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = network_of("llama", max_position_embeddings=4096)
    attention, shortcut = shortcut_of(network, 64)
    with counted(monkeypatch) as runs:
        found = logits(network, attention, [60, 4, 1, 1], shortcut=shortcut)
    assert runs[-1] == 8
    assert_equal(found, logits(network, attention, [60, 4, 1, 1]))


def test_more_logits_than_the_heads_kernel_computes_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = network_of("llama")
    attention, shortcut = shortcut_of(network)
    shortcut._head = copy(shortcut._head)  # not the layer's own
    shortcut._head.kernel = replace(shortcut._head.kernel, most_rows=2)
    with counted(monkeypatch) as runs:
        found = logits(network, attention, [2, 1, 2], shortcut=shortcut)
    assert runs == [2]
    assert_equal(found, logits(network, attention, [2, 1, 2]))


class Scaled(LlamaForCausalLM):
    """Does more than its parts: what Cohere's do with logits."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 0.5
        return output


class Stretched(LlamaModel):
    """The same, but only where the proof of a path does not come."""

    def forward(self, *args: Any, position_ids: Tensor | None = None, **kwargs: Any) -> Any:
        output = super().forward(*args, position_ids=position_ids, **kwargs)
        if position_ids is not None:
            output.last_hidden_state *= 1 + (position_ids[..., None] > 200)
        return output


def scale(network: Any) -> None:
    network.__class__ = Scaled


def stretch(network: Any) -> None:
    network.model.__class__ = Stretched


@pytest.mark.parametrize("change", [scale, stretch])
def test_a_model_that_does_more_is_run_as_before(change: Any) -> None:
    network = network_of("llama")
    change(network)
    _, shortcut, why = proved(network)
    if why != FEW:
        assert (shortcut, why) == (None, "it does more than its parts do")


class Strict(LlamaRotaryEmbedding):
    def forward(self, x: Tensor, position_ids: Tensor) -> Any:
        if x.shape[1] != position_ids.shape[1]:
            raise RuntimeError("as many states as positions")
        return super().forward(x, position_ids)


def test_parts_that_want_more_leave_the_layers_as_they_are() -> None:
    network = network_of("llama")
    network.model.rotary_emb.__class__ = Strict
    _, shortcut, why = proved(network)  # with compiled layers
    assert (shortcut, why) == (None, "RuntimeError: as many states as positions")


@pytest.mark.parametrize(
    "part",
    [lambda n: n, lambda n: n.model, lambda n: n.model.embed_tokens, lambda n: n.model.rotary_emb],
)
def test_hooks_are_called(part: Any) -> None:
    network, calls = network_of("llama"), []
    part(network).register_forward_hook(lambda *call: calls.append(call))
    attention, shortcut, why = proved(network)
    assert (shortcut, why) == (None, "it has hooks")
    calls.clear()
    logits(network, attention, [3, 1], shortcut=shortcut)
    assert len(calls) == 2


def test_hooks_that_come_later_are_called() -> None:
    network, calls = network_of("llama"), []
    attention, shortcut = shortcut_of(network)
    right = logits(network, attention, [3, 1], shortcut=shortcut)
    network.register_forward_pre_hook(lambda *call: calls.append(call))
    assert_equal(logits(network, attention, [3, 1], shortcut=shortcut), right)
    assert len(calls) == 2


class Other(nn.Embedding):
    """As Gemma's, which multiplies what it finds."""


def derive(network: Any) -> None:
    network.model.embed_tokens.__class__ = Other


def shorten(network: Any) -> None:
    """Ids that only the head has."""
    rows = network.model.embed_tokens.weight[:-1].detach().clone()
    network.model.embed_tokens = nn.Embedding.from_pretrained(rows)


@pytest.mark.parametrize("change", [derive, shorten])
def test_other_embeddings(change: Any) -> None:
    network = network_of("llama")
    shortcut_of(network)  # as it is, it has one
    network = network_of("llama")
    change(network)
    verdict = prove(network, VOCABULARY - 1, CONTEXT)
    why = "its embedding or its head is of another kind or size than ours"
    assert (verdict.shortcut, verdict.forward_reason) == (None, why)


def test_where_layers_are_transformers_so_is_the_forward() -> None:
    verdict = prove(network_of("llama"), VOCABULARY, CONTEXT, compile_kernels=False)
    assert (verdict.shortcut, verdict.forward_reason) == (None, "its layers are not compiled")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_model_info_tells(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted(monkeypatch) as runs, running(tiny_loaded(kind)) as engine:
        details = engine.info().details
        runs.clear()  # those of the proof
        judge = Oracle(tiny_network(kind), tiny_loaded(kind), 256)
        for answer in answers(engine, [Generate(1, (1, 2, 3), 5)]):
            judge.check(answer.op, answer.items)
    assert details["forward"] == ("compiled" if runs else "transformers")
    if kind == "llama" and details["forward_reason"] != FEW:
        assert runs == [3, 1, 1, 1, 1]
