"""Norms in C: the same numbers, only where they are the same, and a way back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from lmtp_replicate.engine.compiled_norms import CompiledNorm, compile_norms
from lmtp_replicate.engine.kernels import kernels
from lmtp_replicate.engine.proof import prove
from tests.engine.running import running
from tests.engine.tiny_models import VOCABULARY, tiny_loaded, tiny_network

pytestmark = pytest.mark.usefixtures("has_compiler")


@pytest.fixture
def _compiled_anew() -> Iterator[None]:
    kernels.cache_clear()
    yield
    kernels.cache_clear()


def compiled(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m.__dict__.get("forward"), CompiledNorm)]


@pytest.mark.parametrize("rows", [1, 3, 600])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_compiled_norms_compute_the_same(name: str, rows: int) -> None:
    network = tiny_network(name)
    norms = compile_norms(network)
    assert len(norms.compiled) == len(compiled(network)) > 4
    for norm in norms.compiled:
        x = torch.randn(1, rows, norm.weight.shape[0]) * 5
        torch.testing.assert_close(norm(x), type(norm).forward(norm, x), rtol=1e-5, atol=1e-6)


def test_a_norm_of_another_kind_stays() -> None:
    """Gemma's multiplies by one more than the weight."""
    network = tiny_network("gemma3_text")
    torch.nn.init.normal_(network.model.norm.weight)
    norms = compile_norms(network)
    assert network.model.norm not in norms.compiled


def test_what_it_does_not_know_the_model_computes() -> None:
    network = tiny_network("llama")
    compile_norms(network)
    norm, plain = network.model.norm, type(network.model.norm).forward
    dim = norm.weight.shape[0]
    for x in (torch.randn(1, dim, 3).transpose(1, 2), torch.randn(1, 3, dim).double()):
        assert torch.equal(norm(x), plain(norm, x))


def test_hooks_are_respected() -> None:
    network = tiny_network("llama")
    network.model.norm.register_forward_hook(lambda module, args, output: output * 2)
    assert network.model.norm not in compile_norms(network).compiled


def test_norms_in_bfloat16_compute_the_same_but_for_a_rounding() -> None:
    network = tiny_network("llama").to(torch.bfloat16)
    norms = compile_norms(network)
    assert len(norms.compiled) == len(compiled(network)) > 4
    for norm in norms.compiled:
        x = torch.randn(1, 70, norm.weight.shape[0]).to(torch.bfloat16) * 5
        expected = type(norm).forward(norm, x)
        torch.testing.assert_close(norm(x), expected, rtol=1e-2, atol=1e-6)
        total, normed = norm.forward.add(x.clone(), x)
        assert torch.equal(total, x + x)
        assert torch.equal(normed, norm(x + x))


def test_other_dtypes_stay() -> None:
    norms = compile_norms(tiny_network("llama").to(torch.float16))
    assert (norms.compiled, norms.reason) == ([], "none that can be compiled")


def test_a_model_that_agrees_on_no_path_gets_its_norms_back() -> None:
    network = tiny_network("llama")
    layer = network.model.layers[0]
    norm, plain = layer.input_layernorm, type(layer.input_layernorm).forward

    def forward(x: torch.Tensor, **kwargs: Any) -> Any:
        is_changed = "forward" in norm.__dict__
        return type(layer).forward(layer, plain(norm, x) * (2 if is_changed else 1), **kwargs)

    layer.forward = forward
    verdict = prove(network, VOCABULARY, 256)
    assert verdict.path == "packed"
    assert verdict.norms[0] == "torch"
    assert verdict.norms[1].startswith("with compiled ones, packed: 100% of the positions differ")
    assert compiled(network) == []


@pytest.mark.parametrize(
    ("settings", "norms", "reason"),
    [
        ({}, "compiled", "those that agree with transformers' own"),
        ({"compile_kernels": False}, "torch", "as asked"),
    ],
)
def test_the_engine_says_how_its_norms_are_run(
    settings: dict[str, Any], norms: str, reason: str
) -> None:
    with running(tiny_loaded("llama"), **settings) as engine:
        details = engine.info().details
        assert (details["norms"], details["norms_reason"]) == (norms, reason)


@pytest.mark.usefixtures("_compiled_anew")
def test_without_a_compiler_they_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    norms = compile_norms(tiny_network("llama"))
    assert norms.compiled == []
    assert "there is no C compiler" in norms.reason
