"""Linear layers in whole numbers: as exact as float32's own sums, row by row the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import linear

from lmtp_replicate.engine.digit_linear import digit_linear
from lmtp_replicate.engine.kernels import kernels
from lmtp_replicate.engine.laid_out_linear import LaidOutLinear
from lmtp_replicate.engine.packed_linears import pack_linears
from lmtp_replicate.engine.proof import prove
from lmtp_replicate.engine.three_byte_linear import three_byte_linear
from lmtp_replicate.engine.whole_linear import WholeLinear
from tests.engine.running import running
from tests.engine.tiny_models import (
    VOCABULARY,
    network_that_reads_a_weight,
    tiny_loaded,
    tiny_network,
)


def has_digits() -> bool:
    compiled, _ = kernels(torch.float32)
    return compiled is not None and compiled.linear_digits is not None


def has_whole_numbers() -> bool:
    compiled, _ = kernels(torch.float32)
    return has_digits() or (compiled is not None and compiled.linear_bytes is not None)


pytestmark = pytest.mark.skipif(
    not has_whole_numbers(),
    reason="this CPU has neither AMX nor AVX2, or there is no compiler",
)


def layer_of(weight: Tensor, bias: Tensor | None = None) -> WholeLinear:
    """In the kind of whole numbers that the CPU is fast with."""
    layer = digit_linear(weight, bias) or three_byte_linear(weight, bias)
    assert layer is not None
    return layer


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_threads(count: int, layer: LaidOutLinear, x: Tensor) -> Tensor:
    """What `layer` makes of `x` with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return layer(x)
    finally:
        torch.set_num_threads(before)


def _size(tensor: Tensor) -> Tensor:
    """The root of its mean square."""
    return tensor.double().square().mean().sqrt()


@settings(max_examples=150, deadline=None)
@example(rows=96, inputs=100, outputs=76, has_bias=False, threads=1, size=1e-20)
@example(rows=96, inputs=2, outputs=62, has_bias=True, threads=1, size=1.0)
@given(
    rows=st.integers(1, 70) | st.sampled_from([96, 97, 193, 256, 257, 300, 600]),
    inputs=st.integers(1, 200) | st.sampled_from([768, 2048]),
    outputs=st.integers(1, 100),
    has_bias=st.booleans(),
    threads=st.sampled_from([1, 2]),
    size=st.sampled_from([1e-20, 1.0, 1e15]),
)
def test_sums_are_as_exact_as_float32(
    rows: int, inputs: int, outputs: int, has_bias: bool, threads: int, size: float
) -> None:
    weight, x = numbers(outputs, inputs) * size, numbers(rows, inputs, seed=1)
    bias = numbers(outputs, seed=2) * size if has_bias else None
    found = in_threads(threads, layer_of(weight, bias), x)
    sums = linear(x.double(), weight.double())
    expected = sums if bias is None else sums + bias.double()
    # Of the row's and the output's largest numbers 2^-24 each are lost in every product.
    lost = x.abs().amax(1)[:, None] * weight.abs().amax(1)[None] * 2.0**-22 * inputs**0.5
    # Sums of floats may be rounded by 2^-24 in each of so many additions; those of digits are not.
    additions = 0 if has_digits() else min(inputs, 128) + inputs / 128
    rounded = additions * 2.0**-24 * (x.double().abs() @ weight.double().abs().t())
    # A row's and an output's factor, on the way there and back, what they make together, the sum
    # of the digits' orders and its product with the factors; then the sum with the bias.
    rounded += 2.0**-24 * (7 * sums.abs() + expected.abs())
    assert found.shape == expected.shape
    assert ((found - expected).abs() <= lost + rounded).all()
    if inputs > 50 and found.numel() >= 100:  # a mean of as many errors
        usual = _size(x) * _size(weight) * inputs**0.5
        assert _size(found - expected) < 1e-6 * usual + 1e-7 * _size(expected)


def test_a_row_is_the_same_whoever_it_is_with() -> None:
    layer, x = layer_of(numbers(96, 200)), numbers(1, 600, 200, seed=1)
    together = layer(x)
    for rows in (*range(1, 14), 15, 16, 17, 31, 32, 33, 96, 97, 256, 257):
        assert torch.equal(layer(x[:, :rows]), together[:, :rows])
        assert torch.equal(layer(x[:, -rows:]), together[:, -rows:])


@pytest.mark.parametrize("shape", [(0, 5), (5,), (2, 3, 5), (2, 0, 5)])
def test_any_shape_of_input(shape: tuple[int, ...]) -> None:
    weight, bias, x = numbers(7, 5), numbers(7, seed=1), numbers(*shape, seed=2)
    torch.testing.assert_close(layer_of(weight, bias)(x), linear(x, weight, bias))
    turned = numbers(5, 9).t()
    torch.testing.assert_close(layer_of(weight, bias)(turned), linear(turned, weight, bias))


def test_a_model_that_reads_its_weights_itself_gets_them_back() -> None:
    network = network_that_reads_a_weight()
    verdict = prove(network, VOCABULARY, 256, "all")
    assert verdict.path == "packed"
    assert verdict.linears[0] == "plain"
    assert not any(isinstance(module, WholeLinear) for module in network.modules())


def test_what_is_not_a_number_spoils_its_own_row_only() -> None:
    layer, x = layer_of(numbers(40, 70)), numbers(50, 70, seed=1)
    expected = layer(x)
    for row, number in ((3, torch.nan), (20, torch.inf), (49, -torch.inf)):
        x[row, row] = number
    found = layer(x)
    spoilt = torch.zeros(50, dtype=torch.bool)
    spoilt[[3, 20, 49]] = True
    assert not found[spoilt].isfinite().any()
    assert torch.equal(found[~spoilt], expected[~spoilt])


def test_zeros_and_tiny_numbers_give_the_bias() -> None:
    bias = numbers(40, seed=3)
    weight = numbers(40, 70)
    weight[7] = 0
    weight[8] = 1e-38
    x = numbers(20, 70, seed=1)
    x[2] = 0
    x[3] = 1e-38
    found = layer_of(weight, bias)(x)
    assert torch.equal(found[2], bias)
    assert torch.equal(found[3], bias)
    assert torch.equal(found[:, 7], bias[7].expand(20))
    assert (found[:, 8] - bias[8]).abs().max() <= 1e-30


@pytest.mark.parametrize("times", [30, 3000])
def test_a_number_far_above_the_others_costs_little(times: float) -> None:
    """Float32's own sums lose digits beside its product, and so do ours."""
    weight, x = numbers(64, 768), numbers(30, 768, seed=1)
    x[:, 5] *= times
    expected = linear(x.double(), weight.double())
    size = expected.square().mean().sqrt()
    assert (layer_of(weight)(x) - expected).square().mean().sqrt() < 4e-6 * size


@pytest.mark.skipif(not has_digits(), reason="this CPU has no AMX")
def test_a_number_far_above_the_others_that_is_ignored_costs_digits() -> None:
    """As digit_linear.py says."""
    weight, x = numbers(64, 768), numbers(30, 768, seed=1)
    x[:, 5], weight[:, 5] = 3000.0, 0.0
    error = (layer_of(weight)(x) - linear(x.double(), weight.double())).abs().max()
    assert error < 768**0.5 * 3000 * weight.abs().max() * 2.0**-22


def test_a_number_far_above_the_others_meets_a_weight_far_below_the_largest() -> None:
    """As whole_linear.py says: the weight has lost 2^-24 of the largest."""
    weight, x = numbers(64, 768), numbers(30, 768, seed=1)
    x[:, 5], weight[:, 5] = 3000.0, 1e-4
    error = (layer_of(weight)(x) - linear(x.double(), weight.double())).abs().max()
    assert error < 3000 * weight.abs().max() * 2.0**-23 * (1 if not has_digits() else 768**0.5)


def test_what_is_no_input_of_the_layer_is_refused() -> None:
    layer = layer_of(numbers(64, 128))
    for wrong in (numbers(3, 127), numbers(3, 129), numbers(3, 128).double(), numbers(2, 64)):
        with pytest.raises(ValueError, match="a layer of 128 inputs in float32 on the CPU got"):
            layer(wrong)


@pytest.mark.skipif(not has_digits(), reason="this CPU has no AMX")
def test_more_inputs_than_32_bits_can_hold_are_left_to_others() -> None:
    assert digit_linear(numbers(1, 43_001), None) is None


def test_numbers_next_to_the_largest_stay_what_they_are() -> None:
    """One that would be rounded to more than its bytes hold would come back with another sign."""
    largest = numbers(2000, 1, seed=4)
    weight = torch.cat([largest, -largest, largest * (1 - 2.0**-24)], dim=1)
    torch.testing.assert_close(layer_of(weight).plain_weight(), weight, rtol=2.0**-22, atol=0)


def test_the_weight_can_be_had_back_and_takes_three_quarters_of_its_bytes() -> None:
    for outputs, inputs in ((64, 128), (33, 65), (5000, 3)):
        weight = numbers(outputs, inputs)
        layer = layer_of(weight)
        largest = weight.abs().amax(1, keepdim=True)
        assert ((layer.plain_weight() - weight).abs() <= largest * 2.0**-23).all()
        assert layer.weight.shape == weight.shape
        assert layer.weight.dtype == torch.float32
    start, end = layer_of(numbers(64, 128)).memory
    assert end - start == 64 * 128 * 3


@pytest.mark.parametrize("spoil", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_left_to_others(spoil: float) -> None:
    weight = numbers(64, 128)
    weight[3, 4] = spoil
    holder = nn.Sequential(nn.Linear(128, 64))
    holder[0].weight = nn.Parameter(weight, requires_grad=False)
    pack_linears(holder, "all")
    assert not isinstance(holder[0], WholeLinear)
    half = numbers(64, 128).to(torch.bfloat16)
    assert digit_linear(half, None) is None
    assert three_byte_linear(half, None) is None


def test_a_layer_that_computes_something_else_is_left_to_onednn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = layer_of(numbers(64, 64)).tried_rows

    def forward(self: WholeLinear, x: Tensor) -> Tensor:
        right = linear(x, self.plain_weight(), self.bias)
        return right * 1.001 if x.shape[0] == tried[-1] else right

    monkeypatch.setattr(WholeLinear, "forward", forward)
    holder = nn.Sequential(nn.Linear(64, 64))
    linears = pack_linears(holder, "all")
    assert linears.state == "onednn-packed"
    assert not isinstance(holder[0], WholeLinear)


def test_a_model_tells_that_it_has_them() -> None:
    with running(tiny_loaded("llama")) as engine:
        details = engine.info().details
    assert details["linears"] == ("digits" if has_digits() else "three-bytes")
    assert "in whole numbers of three " in details["linears_reason"]
    with running(tiny_loaded("llama"), compile_kernels=False) as engine:
        assert engine.info().details["linears"] == "onednn-packed"


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_unpacked_layers_are_what_is_left_of_the_plain_ones(name: str) -> None:
    network, plain = tiny_network(name), tiny_network(name)
    linears = pack_linears(network, "all")
    assert linears.state in ("digits", "three-bytes")
    linears.unpack("a test asks for it")
    assert linears.state == "plain"
    for (key, found), expected in zip(
        network.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, msg=key)
