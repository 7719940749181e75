"""Decoder layers run by one call: all of a step's, the same numbers, and only where it can."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lmtp_replicate.engine.compiled_attention import CompiledAttention, CompiledStep
from lmtp_replicate.engine.compiled_layers import CompiledLayer
from lmtp_replicate.engine.kernels import kernels
from lmtp_replicate.engine.layer_stack import LayerStack
from lmtp_replicate.engine.packed import PackedModel
from lmtp_replicate.engine.pages import PagePool
from lmtp_replicate.engine.plan import Plan, Work
from lmtp_replicate.engine.proof import prove
from lmtp_replicate.engine.shortcut import Shortcut
from lmtp_replicate.engine.spans import Spans
from lmtp_replicate.engine.stream import Stream
from lmtp_replicate.engine.wanted_rows import WantedRows
from lmtp_replicate.protocol.messages import Generate, Score
from tests.engine.bfloat16 import packs_bfloat16
from tests.engine.oracle import Oracle
from tests.engine.running import answers, running
from tests.engine.tiny_models import VOCABULARY, tiny_loaded, tiny_network

pytestmark = pytest.mark.usefixtures("has_compiler")

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"mlp_bias": True, "attention_bias": True}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 9}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "windows": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
}
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.1}


def network_of(kind: str, dtype: torch.dtype = torch.float32, **changed: Any) -> Any:
    config, network, settings = KINDS[kind]
    torch.manual_seed(0)
    made = network(config(**{**SHAPE, **settings, **changed})).eval().to(dtype)
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)  # zero at first
    return made


def compiled_layers(network: nn.Module) -> list[CompiledLayer]:
    forwards = [module.__dict__.get("forward") for module in network.modules()]
    return [forward for forward in forwards if isinstance(forward, CompiledLayer)]


def stack_of(network: nn.Module) -> LayerStack:
    first, *others = compiled_layers(network)
    assert first.stack is not None
    assert [layer.stack for layer in others] == [None] * len(others)
    return first.stack


def proved(kind: str, dtype: torch.dtype) -> tuple[Any, CompiledAttention]:
    """A network whose layers have a stack, and its attention; skips where there is none."""
    if dtype == torch.bfloat16 and not packs_bfloat16():
        pytest.skip("bfloat16 is not packed on this CPU")
    network = network_of(kind, dtype)
    attention = prove(network, VOCABULARY, 256).attention
    assert attention is not None
    if stack_of(network).most_tokens == 0:
        pytest.skip("this CPU has no kernel of ours for these layers")
    return network, attention


def assert_same(steps: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    """The logits of each, of which some may have none."""
    for found, right in zip(steps, expected, strict=True):
        assert found.shape == right.shape
        if len(right):
            assert (found - right).abs().max() <= TOLERANCES[dtype] * right.abs().max()


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The numbers of tokens of all runs."""
    runs: list[int] = []
    plain = LayerStack.call

    def call(self: LayerStack, function: Any, first: Any, tokens: int, *rest: Any) -> None:
        runs.append(tokens)
        plain(self, function, first, tokens, *rest)

    with patch.context() as patched:
        patched.setattr(LayerStack, "call", call)
        yield runs


@contextmanager
def wanted_rows(patch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """In each run of which not all tokens were wanted, how many, and how many there were."""
    counts: list[tuple[int, int]] = []
    plain = CompiledStep.wanted

    def wanted(self: CompiledStep) -> WantedRows | None:
        rows = plain(self)
        if rows is not None:
            counts.append((rows.arguments.count, self._tokens))
        return rows

    with patch.context() as patched:
        patched.setattr(CompiledStep, "wanted", wanted)
        yield counts


def logits(
    network: Any,
    attention: CompiledAttention,
    chunks: list[int],
    prompts: tuple[int, int] = (1, 1),
    shortcut: Shortcut | None = None,
) -> list[Tensor]:
    """Of two streams, of which each step runs a chunk each, the second one's first: of all tokens
    from the prompts' last ones on."""
    ids = torch.randint(
        VOCABULARY, (2, sum(chunks) + 1), generator=torch.Generator().manual_seed(3)
    )
    streams = []
    pool: PagePool = Spans(512, 16)
    for index, (row, prompt) in enumerate(zip(ids.tolist(), prompts, strict=True)):
        op = Score(index, tuple(row[:prompt]), tuple(row[prompt:]))
        streams.append(Stream(op, op.prompt, limit=len(row)))
        streams[-1].place = pool.take(len(row))
    model = PackedModel(network, pool, attention, shortcut)
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
def test_the_layers_make_what_each_makes_alone(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, attention = proved(kind, dtype)
    stack, chunks = stack_of(network), [1, 30, 1, 9, 1]
    with counted(monkeypatch) as runs:
        together = logits(network, attention, chunks)
    takes_long = attention.longest >= 30 or attention.long is not None
    if stack.most_tokens >= 60 and takes_long:
        assert runs == [2, 60, 2, 18, 2]
    assert 2 in runs
    stack.most_tokens = 0
    with counted(monkeypatch) as runs:
        alone = logits(network, attention, chunks)
    assert runs == []
    assert_same(together, alone, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompts", [(10, 41), (39, 40), (1, 42), (42, 12), (35, 30)])
def test_the_last_layer_serves_only_tokens_whose_logits_are_wanted(
    kind: str, dtype: torch.dtype, prompts: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all the streams' chunks, some, none."""
    network, attention = proved(kind, dtype)
    stack, chunks = stack_of(network), [1, 4, 30, 2, 5]
    with counted(monkeypatch) as runs, wanted_rows(monkeypatch) as wanted:
        together = logits(network, attention, chunks, prompts)
    steps = [(len(step), 2 * size) for step, size in zip(together, chunks, strict=True)]
    assert wanted == [(rows, size) for rows, size in steps if rows < size and size in runs]
    assert wanted
    stack.most_tokens = 0
    assert_same(together, logits(network, attention, chunks, prompts), dtype)


def test_layers_before_the_last_serve_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they make of a token is seen by those after it in the next layer."""
    network = network_of("llama")
    network.model.layers[-1].register_forward_hook(lambda *call: None)  # so it is left as it is
    verdict = prove(network, VOCABULARY, 256)
    assert verdict.attention is not None
    assert len(compiled_layers(network)) == 2
    stack = stack_of(network)
    with counted(monkeypatch) as runs, wanted_rows(monkeypatch) as wanted:
        together = logits(network, verdict.attention, [30, 5], (33, 34))
    assert (runs, wanted) == ([60, 10], [])
    stack.most_tokens = 0
    alone = logits(network, verdict.attention, [30, 5], (33, 34))
    assert len(alone[1])
    assert_same(together, alone, torch.float32)


def test_a_step_is_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with counted(monkeypatch) as runs, running(tiny_loaded("llama")) as engine:
        runs.clear()  # those of the proof
        judge = Oracle(tiny_network("llama"), tiny_loaded("llama"), 256)
        for answer in answers(engine, [Generate(1, (1, 2, 3), 5)]):
            judge.check(answer.op, answer.items)
        assert runs == [3, 1, 1, 1, 1]


@pytest.mark.usefixtures("with_onednn_only")
def test_more_tokens_than_its_kernels_take_are_run_layer_by_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library, _ = kernels(torch.float32)
    assert library is not None
    most = library.linear.most_rows
    with counted(monkeypatch) as runs, running(tiny_loaded("llama")) as engine:
        runs.clear()
        judge = Oracle(tiny_network("llama"), tiny_loaded("llama"), 256)
        prompt = tuple(n % VOCABULARY for n in range(most + 1))
        for answer in answers(engine, [Generate(1, prompt, 3)]):
            judge.check(answer.op, answer.items)
        assert runs == [1, 1]


def test_one_kernel_has_to_compute_all_their_linear_layers() -> None:
    network = network_of("llama")
    prove(network, VOCABULARY, 256)
    layers = [layer.stacked for layer in compiled_layers(network)]
    library, _ = kernels(torch.float32)
    assert library is not None
    assert LayerStack(layers, library).most_tokens > 0
    layers[1].linears = [None, *layers[1].linears[1:]]
    assert LayerStack(layers, library).most_tokens == 0


def test_they_have_to_be_as_large() -> None:
    library, _ = kernels(torch.float32)
    assert library is not None
    layers = []
    for size in (96, 64):
        network = network_of("llama", intermediate_size=size)
        prove(network, VOCABULARY, 256)
        layers += [layer.stacked for layer in compiled_layers(network)]
    assert LayerStack(layers[:3], library).most_tokens > 0
    assert LayerStack(layers[3:], library).most_tokens > 0
    assert LayerStack(layers, library).most_tokens == 0


@pytest.mark.parametrize("place", range(7))
@pytest.mark.parametrize("field", ["inputs", "outputs"])
def test_parts_have_to_fit_together(place: int, field: str) -> None:
    """C would read and write beyond what is there."""
    library, _ = kernels(torch.float32)
    assert library is not None
    network = network_of("llama")
    prove(network, VOCABULARY, 256)
    layers = [layer.stacked for layer in compiled_layers(network)]
    for layer in layers:
        linear = layer.linears[place]
        assert linear is not None
        setattr(linear.arguments, field, 32)
    assert LayerStack(layers, library).most_tokens == 0


def test_layers_that_rotate_by_other_angles_are_run_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = network_of("llama")
    verdict = prove(network, VOCABULARY, 256)
    assert verdict.attention is not None
    library, _ = kernels(torch.float32)
    assert library is not None
    stacked = [layer.stacked for layer in compiled_layers(network)]
    assert stacked[1].learned is not None
    stacked[1].learned = stacked[1].learned._replace(cosines=1)
    compiled_layers(network)[0].stack = LayerStack(stacked, library, is_last=True)
    with counted(monkeypatch) as runs:
        logits(network, verdict.attention, [3, 1])
    assert runs == []
