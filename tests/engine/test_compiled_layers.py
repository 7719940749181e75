"""Decoder layers in a few calls: the same numbers, only where they are the same, and a way back."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    Ministral3Config,
    Ministral3ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lmtp_replicate.engine.compiled_layers import CompiledLayer
from lmtp_replicate.engine.kernels import kernels
from lmtp_replicate.engine.proof import prove
from lmtp_replicate.protocol.messages import Generate
from tests.engine.bfloat16 import packs_bfloat16
from tests.engine.oracle import Oracle
from tests.engine.running import answers, running
from tests.engine.tiny_models import VOCABULARY, tiny_loaded, tiny_network

pytestmark = pytest.mark.usefixtures("has_compiler")

NONE = "none of Llama's parts, with packed linear layers and compiled norms"
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}


def compiled(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m.__dict__.get("forward"), CompiledLayer)]


def mistral() -> Any:
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=9)).eval()


def qwen2() -> Any:
    network = Qwen2ForCausalLM(Qwen2Config(**SHAPE)).eval()
    for layer in network.model.layers:
        nn.init.normal_(layer.self_attn.q_proj.bias)  # its biases are zero at first
    return network


def granite() -> Any:
    """Of the same parts, with other factors between them."""
    return GraniteForCausalLM(GraniteConfig(**SHAPE, residual_multiplier=0.5)).eval()


@pytest.mark.parametrize(
    "make", [lambda: tiny_network("llama"), lambda: tiny_network("qwen3"), mistral, qwen2]
)
def test_layers_of_llamas_kind_are_taken_over(make: Any) -> None:
    torch.manual_seed(0)
    network = make()
    verdict = prove(network, VOCABULARY, 256)
    assert (verdict.path, verdict.layers[0]) == ("packed", "compiled")
    assert verdict.layers[1] == "they agree with transformers' own"
    assert compiled(network) == list(network.model.layers)


def test_layers_that_compute_something_else_are_found_out() -> None:
    torch.manual_seed(0)
    network = granite()
    verdict = prove(network, VOCABULARY, 256)
    assert (verdict.path, verdict.layers[0]) == ("packed", "torch")
    assert re.match(r"with our own, \d+% of the positions differ", verdict.layers[1])
    assert compiled(network) == []
    assert verdict.attention is not None  # only what differs is given up


@pytest.mark.parametrize("name", ["gemma3_text", "gpt2"])
def test_layers_with_other_parts_stay(name: str) -> None:
    network = tiny_network(name)
    verdict = prove(network, VOCABULARY, 256)
    assert verdict.layers == ("torch", NONE)
    assert compiled(network) == []


def test_layers_whose_attention_asks_for_positions_stay() -> None:
    """Ministral 3 scales queries beyond a position that no trial reaches."""
    torch.manual_seed(0)
    scaled = {"rope_type": "default", "rope_theta": 10000.0, "llama_4_scaling_beta": 0.5}
    rope = {**scaled, "original_max_position_embeddings": 64}
    network = Ministral3ForCausalLM(Ministral3Config(**SHAPE, head_dim=16, rope_parameters=rope))
    verdict = prove(network.eval(), VOCABULARY, 256)
    assert (verdict.path, verdict.layers) == ("packed", ("torch", NONE))


def test_layers_whose_attention_is_not_known_are_given_back() -> None:
    torch.manual_seed(0)
    network = MistralForCausalLM(MistralConfig(**SHAPE, head_dim=12)).eval()
    verdict = prove(network, VOCABULARY, 256)
    assert verdict.attention is None
    assert verdict.layers == ("torch", "they have attention that ours does not compute")
    assert compiled(network) == []


@pytest.mark.parametrize("pack", ["none", "untied"])
def test_without_packed_linear_layers_none_is_taken_over(pack: Any) -> None:
    network = tiny_network("llama", tie_word_embeddings=True)
    verdict = prove(network, VOCABULARY, 256, pack)
    assert verdict.layers[0] == ("torch" if pack == "none" else "compiled")


def test_other_dtypes_stay_and_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        pytest.fail("something was compiled")

    monkeypatch.setattr("lmtp_replicate.engine.kernels.compile_library", fail)
    kernels.cache_clear()
    verdict = prove(tiny_network("llama").to(torch.float16), VOCABULARY, 256)
    assert verdict.layers == ("torch", "only for float32 and bfloat16")


@pytest.mark.skipif(not packs_bfloat16(), reason="bfloat16 is not packed on this CPU")
def test_layers_in_bfloat16_are_taken_over() -> None:
    network = tiny_network("llama").to(torch.bfloat16)
    verdict = prove(network, VOCABULARY, 256)
    assert (verdict.path, verdict.layers[0]) == ("packed", "compiled")
    assert compiled(network) == list(network.model.layers)


def test_without_a_packed_step_a_layer_is_transformers_own() -> None:
    network = tiny_network("llama")
    ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    with torch.inference_mode():
        before = network(input_ids=ids, use_cache=False).logits
        prove(network, VOCABULARY, 256)
        assert compiled(network)
        after = network(input_ids=ids, use_cache=False).logits
    assert (after - before).abs().max() < 1e-4


def test_hooks_are_respected() -> None:
    network = tiny_network("llama")
    network.model.layers[1].mlp.register_forward_hook(lambda module, args, output: output)
    prove(network, VOCABULARY, 256)
    assert compiled(network) == [network.model.layers[0]]


@pytest.mark.parametrize("wanted", [True, False])
def test_the_engine_tells_and_answers_as_the_oracle(wanted: bool) -> None:
    with running(tiny_loaded("llama"), compile_kernels=wanted) as engine:
        details = engine.info().details
        assert details["layers"] == ("compiled" if wanted else "torch")
        judge = Oracle(tiny_network("llama"), tiny_loaded("llama"), 256)
        ops = [Generate(n, tuple(range(1, 3 + 9 * n)), 30) for n in range(5)]
        for answer in answers(engine, ops):
            judge.check(answer.op, answer.items)
