"""Packed linear layers: the same numbers, each weight held once, and a way back."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import nn

from lmtp_replicate.engine.packed_linear import PackedLinear
from lmtp_replicate.engine.packed_linears import onednn_packs_bfloat16, pack_linears
from lmtp_replicate.engine.proof import prove
from tests.engine.running import running
from tests.engine.tiny_models import (
    VOCABULARY,
    network_that_reads_a_weight,
    tiny_loaded,
    tiny_network,
)

pytestmark = pytest.mark.usefixtures("with_onednn_only")

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def logits(network: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = network(input_ids=IDS, use_cache=False).logits
    return found.float()


def plain_layers(network: nn.Module) -> list[str]:
    names = {"Linear", "Conv1D"}
    return [n for n, layer in network.named_modules() if type(layer).__name__ in names]


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox"])
def test_packed_layers_compute_the_same_and_replace_all_plain_ones(name: str) -> None:
    network = tiny_network(name)
    before = logits(network)
    linears = pack_linears(network, "all")
    assert linears.state == "onednn-packed"
    assert plain_layers(network) == []
    assert (logits(network) - before).abs().max() < 1e-4


def test_bfloat16_is_packed_too_where_the_cpu_allows_it() -> None:
    network = tiny_network("llama").to(torch.bfloat16)
    before = logits(network)
    linears = pack_linears(network, "all")
    if onednn_packs_bfloat16():
        assert linears.state == "onednn-packed"
    else:
        assert (linears.state, linears.reason) == ("plain", "none that can be packed")
    after = logits(network)
    assert (after - before).square().mean().sqrt() < 0.02 * before.square().mean().sqrt()


def test_other_dtypes_stay_plain() -> None:
    linears = pack_linears(tiny_network("llama").to(torch.float16), "all")
    assert (linears.state, linears.reason) == ("plain", "none that can be packed")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_unpacking_gives_back_the_very_same_numbers(name: str) -> None:
    network = tiny_network(name)
    before, layers = logits(network), plain_layers(network)
    linears = pack_linears(network, "all")
    linears.unpack("a test")
    assert (linears.state, linears.reason) == ("plain", "a test")
    assert plain_layers(network) == layers
    assert torch.equal(logits(network), before)


def test_no_weight_is_held_twice() -> None:
    network = tiny_network("llama")
    weights = [weakref.ref(network.get_submodule(n).weight) for n in plain_layers(network)]
    pack_linears(network, "all")
    assert len(weights) == 15
    assert not any(weight() is not None for weight in weights)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_tied_head_is_packed_beside_the_embeddings_or_left_alone(name: str) -> None:
    network = tiny_network(name, tie_word_embeddings=True)
    before, count = logits(network), len(plain_layers(network))
    linears = pack_linears(network, "untied", compile_kernels=False)
    assert plain_layers(network) == ["lm_head"]
    assert linears.reason == f"{count - 1} layers, 0 of them beside a plain weight used elsewhere"
    linears = pack_linears(network, "all", compile_kernels=False)
    assert plain_layers(network) == []
    assert linears.reason == "1 layers, 1 of them beside a plain weight used elsewhere"
    assert (logits(network) - before).abs().max() < 1e-4
    linears.unpack("a test")
    assert network.lm_head.weight is network.get_input_embeddings().weight


class Scaled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_derived_hooked_and_sharing_layers_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Scaled(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model.append(model[0])
    model.append(nn.Linear(3, 3))
    model[5].weight = model[3].weight
    model[2].register_forward_hook(lambda *_: None)
    model.requires_grad_(False)
    before = model(torch.ones(2, 3))
    pack_linears(model, "all")
    kinds = [type(layer) for layer in model]
    assert kinds == [PackedLinear, Scaled, nn.Linear, nn.Linear, PackedLinear, nn.Linear]
    assert model[0] is model[4]
    assert (model(torch.ones(2, 3)) - before).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(0, 5), (5,), (2, 3, 5), (2, 0, 5)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_any_shape_of_input(shape: tuple[int, ...], has_bias: bool) -> None:
    model = nn.Sequential(nn.Linear(5, 7, bias=has_bias)).requires_grad_(requires_grad=False)
    x = torch.randn(shape)
    expected = model(x)
    assert pack_linears(model, "all").state == "onednn-packed"
    assert torch.allclose(model(x), expected, atol=1e-6)


@pytest.mark.parametrize("fault", ["differs", "raises"])
def test_if_one_layer_fails_its_trial_all_stay_plain(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = PackedLinear.forward

    def wrong(layer: PackedLinear, x: torch.Tensor) -> torch.Tensor:
        if layer.in_features == 48:  # the down projection
            if fault == "raises":
                raise RuntimeError("no such kernel")
            return right(layer, x) * 1.001
        return right(layer, x)

    network = tiny_network("llama")
    before, layers = logits(network), plain_layers(network)
    monkeypatch.setattr(PackedLinear, "forward", wrong)
    linears = pack_linears(network, "all")
    assert linears.state == "plain"
    assert ("no such kernel" if fault == "raises" else "down_proj differs") in linears.reason
    assert plain_layers(network) == layers
    assert torch.equal(logits(network), before)


def test_a_model_that_reads_its_weights_itself_gets_them_back() -> None:
    network = network_that_reads_a_weight()
    verdict = prove(network, VOCABULARY, 256, "all")
    assert verdict.path == "packed"
    assert verdict.linears[0] == "plain"
    assert verdict.linears[1].startswith("with packed ones, packed: NotImplementedError")
    assert "PackedLinear" not in {type(module).__name__ for module in network.modules()}


def test_what_was_not_changed_is_not_said_to_be_given_back() -> None:
    network = network_that_reads_a_weight()
    verdict = prove(network, VOCABULARY, 256, "all", compile_kernels=False)
    assert verdict.linears[1].startswith("with packed ones")
    assert verdict.norms == ("torch", "as asked")


@pytest.mark.parametrize(
    ("asked", "state"), [("all", "onednn-packed"), ("untied", "onednn-packed"), ("none", "plain")]
)
def test_the_engine_says_how_its_linear_layers_are_run(asked: str, state: str) -> None:
    with running(tiny_loaded("llama"), pack_linears=asked) as engine:
        details = engine.info().details
        assert details["linears"] == state
        reason = "15 layers, 0 of them beside a plain weight used elsewhere"
        assert details["linears_reason"].startswith(reason if state != "plain" else "as asked")
