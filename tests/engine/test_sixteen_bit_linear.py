"""Linear layers whose weights are kept in 16 bits: float32's own sums, of the very same weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import linear

from lmtp_replicate.engine import precision
from lmtp_replicate.engine.kernels import kernels
from lmtp_replicate.engine.laid_out_linear import LaidOutLinear
from lmtp_replicate.engine.packed_linears import pack_linears
from lmtp_replicate.engine.proof import prove
from lmtp_replicate.engine.sixteen_bit_linear import (
    BFloat16Linear,
    Float16Linear,
    SixteenBitLinear,
    sixteen_bit_kind,
)
from lmtp_replicate.protocol.messages import Generate, Score
from tests.engine.oracle import Oracle
from tests.engine.running import answers, running
from tests.engine.test_whole_linear import in_threads, numbers
from tests.engine.tiny_models import (
    VOCABULARY,
    network_that_reads_a_weight,
    tiny_loaded,
    tiny_network,
)


def has_kernel_for_bfloat16() -> bool:
    compiled, _ = kernels(torch.bfloat16)
    return compiled is not None and compiled.linear_bfloat16 is not None


@pytest.fixture(autouse=True)
def _a_cpu_like_the_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the CPU has what a compiler was told to leave out is for one test of these only."""
    if has_kernel_for_bfloat16():
        monkeypatch.setattr(precision, "_cpu_flags", frozenset)


KINDS: dict[str, type[SixteenBitLinear]] = {"bfloat16": BFloat16Linear, "float16": Float16Linear}

needs_float32 = pytest.mark.skipif(
    BFloat16Linear.kernel(torch.float32) is None,
    reason="this CPU has AMX or no AVX2, or there is no compiler",
)
needs_bfloat16 = pytest.mark.skipif(
    not has_kernel_for_bfloat16(),
    reason="the compiler uses AVX512-BF16, or there is no AVX2 or no compiler",
)
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def saved(kind: type[SixteenBitLinear], *shape: int, seed: int = 0) -> Tensor:
    """Numbers of a checkpoint of that kind, in float32."""
    return numbers(*shape, seed=seed).to(kind.dtype).float()


shapes = given(
    rows=st.integers(1, 70) | st.sampled_from([96, 97, 193, 300]),
    inputs=st.integers(1, 200) | st.sampled_from([768, 2048]),
    outputs=st.integers(1, 100),
    has_bias=st.booleans(),
    threads=st.sampled_from([1, 2]),
)


@needs_float32
@each_kind
@settings(max_examples=80, deadline=None)
@shapes
def test_sums_are_as_exact_as_float32(
    kind: type[SixteenBitLinear], rows: int, inputs: int, outputs: int, has_bias: bool, threads: int
) -> None:
    weight, x = saved(kind, outputs, inputs), numbers(rows, inputs, seed=1)
    bias = numbers(outputs, seed=2) if has_bias else None
    found = in_threads(threads, kind.of(weight, bias), x)
    expected = linear(x.double(), weight.double(), None if bias is None else bias.double())
    # Sums may be rounded by 2^-24 in each addition: 128 inputs at a time, and then their sums.
    additions = min(inputs, 128) + inputs / 128 + 1
    sizes = x.double().abs() @ weight.double().abs().t()
    assert found.shape == expected.shape
    assert ((found - expected).abs() <= 2.0**-24 * (additions * sizes + 2 * expected.abs())).all()


@needs_bfloat16
@settings(max_examples=80, deadline=None)
@shapes
def test_of_a_model_in_bfloat16_only_the_output_is_rounded(
    rows: int, inputs: int, outputs: int, has_bias: bool, threads: int
) -> None:
    weight, x = numbers(outputs, inputs).bfloat16(), numbers(rows, inputs, seed=1).bfloat16()
    bias = numbers(outputs, seed=2).bfloat16() if has_bias else None
    found = in_threads(threads, BFloat16Linear.of(weight, bias), x)
    expected = linear(x.double(), weight.double(), None if bias is None else bias.double())
    sizes = x.double().abs() @ weight.double().abs().t()
    assert found.dtype == torch.bfloat16
    bound = 2.0**-8 * expected.abs() + 2.0**-24 * (inputs + 1) * sizes
    assert ((found.double() - expected).abs() <= bound).all()


@needs_float32
@each_kind
def test_a_row_is_the_same_whoever_it_is_with(kind: type[SixteenBitLinear]) -> None:
    layer, x = kind.of(saved(kind, 96, 200), None), numbers(1, 600, 200, seed=1)
    together = layer(x)
    for rows in (*range(1, 14), 15, 16, 17, 31, 32, 33, 96, 97, 256, 257):
        assert torch.equal(layer(x[:, :rows]), together[:, :rows])
        assert torch.equal(layer(x[:, -rows:]), together[:, -rows:])


@needs_bfloat16
def test_a_row_in_bfloat16_is_the_same_whoever_it_is_with() -> None:
    layer = BFloat16Linear.of(numbers(96, 200).bfloat16(), None)
    x = numbers(1, 300, 200, seed=1).bfloat16()
    together = layer(x)
    for rows in (0, 1, 2, 5, 6, 7, 13, 17, 97):
        assert torch.equal(layer(x[:, :rows]), together[:, :rows])


@needs_float32
@each_kind
def test_what_is_not_a_number_spoils_its_own_row_only(kind: type[SixteenBitLinear]) -> None:
    layer, x = kind.of(saved(kind, 40, 70), None), numbers(50, 70, seed=1)
    expected = layer(x)
    spoilt = torch.zeros(50, dtype=torch.bool)
    for row, number in ((3, torch.nan), (20, torch.inf), (49, -torch.inf)):
        x[row, row], spoilt[row] = number, True
    found = layer(x)
    assert not found[spoilt].isfinite().all(1).any()
    assert torch.equal(found[~spoilt], expected[~spoilt])


@needs_float32
@each_kind
@pytest.mark.parametrize("shape", [(0, 5), (5,), (2, 3, 5), (2, 0, 5)])
def test_any_shape_of_input(kind: type[SixteenBitLinear], shape: tuple[int, ...]) -> None:
    weight, bias, x = saved(kind, 7, 5), numbers(7, seed=1), numbers(*shape, seed=2)
    torch.testing.assert_close(kind.of(weight, bias)(x), linear(x, weight, bias))


@needs_float32
@each_kind
def test_the_weight_is_kept_to_the_last_bit_in_half_the_bytes(kind: type[SixteenBitLinear]) -> None:
    facts = torch.finfo(kind.dtype)
    odd = [facts.max, -facts.max, facts.smallest_normal, facts.smallest_normal / 4, -0.0, 0.0]
    for outputs, inputs in ((64, 128), (33, 65), (5000, 3), (1, 6)):
        weight = saved(kind, outputs, inputs)
        weight.view(-1)[: len(odd)] = torch.tensor(odd)
        assert kind.holds(weight)
        layer = kind.of(weight, None)
        assert torch.equal(layer.plain_weight().view(torch.int32), weight.view(torch.int32))
        assert (layer.weight.shape, layer.weight.dtype) == (weight.shape, torch.float32)
    start, end = kind.of(saved(kind, 64, 128), None).memory
    assert end - start == 64 * 128 * 2


@needs_float32
def test_what_16_bits_do_not_hold_is_not_taken() -> None:
    weight = saved(BFloat16Linear, 3000, 8)
    assert BFloat16Linear.holds(weight)
    for number in (1 + 2.0**-9, torch.nan, 2.0**-140):
        other = weight.clone()
        other[2999, 7] = number
        assert not BFloat16Linear.holds(other)
    assert not Float16Linear.holds(torch.full((1, 1), 65536.0))
    assert sixteen_bit_kind([torch.full((1, 1), 65536.0)]) is BFloat16Linear
    assert sixteen_bit_kind([torch.full((1, 1), 1 + 2.0**-9)]) is Float16Linear
    assert sixteen_bit_kind([torch.full((1, 1), 65536.0), torch.full((1, 1), 1 + 2.0**-9)]) is None
    assert sixteen_bit_kind([weight, weight.bfloat16(), weight.double()]) is None


@needs_float32
def test_what_is_no_input_of_the_layer_is_refused() -> None:
    layer = BFloat16Linear.of(saved(BFloat16Linear, 64, 128), None)
    for wrong in (numbers(3, 127), numbers(3, 128).double(), numbers(3, 128).bfloat16()):
        with pytest.raises(ValueError, match="a layer of 128 inputs in float32 on the CPU got"):
            layer(wrong)


def saved_network(kind: type[SixteenBitLinear], name: str = "llama") -> nn.Module:
    network: nn.Module = tiny_network(name).to(kind.dtype).float()
    return network


@needs_float32
@each_kind
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_checkpoint_in_16_bits_keeps_its_weights(kind: type[SixteenBitLinear], name: str) -> None:
    network, plain = saved_network(kind, name), saved_network(kind, name)
    linears = pack_linears(network, "all")
    assert linears.state == kind.name
    assert f" {kind.description}" in linears.reason
    linears.unpack("a test asks for it")
    for (key, found), expected in zip(
        network.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert torch.equal(found, expected), key


@needs_float32
def test_all_layers_have_one_layout() -> None:
    """One layer of a fine-tuned model may have others' numbers."""
    network = saved_network(BFloat16Linear)
    network.get_submodule("model.layers.1.mlp.up_proj").weight[3, 4] = 1 + 2.0**-20
    pack_linears(network, "all")
    kinds = {type(module) for module in network.modules() if isinstance(module, LaidOutLinear)}
    assert len(kinds) == 1
    assert not kinds & set(KINDS.values())


@needs_float32
@needs_bfloat16
def test_each_dtype_has_a_layout_of_its_own() -> None:
    """A model in bfloat16 whose head is in float32."""
    layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).requires_grad_(requires_grad=False)
    layers[0].to(torch.bfloat16)
    pack_linears(layers, "all")
    assert isinstance(layers[0], BFloat16Linear)
    assert isinstance(layers[1], LaidOutLinear)
    assert not isinstance(layers[1], SixteenBitLinear)


@needs_float32
def test_a_tied_heads_weight_stays_beside_the_packed_one() -> None:
    network = tiny_network("llama", tie_word_embeddings=True).to(torch.bfloat16).float()
    pack_linears(network, "all")
    assert isinstance(network.lm_head, BFloat16Linear)
    embeddings = network.get_input_embeddings().weight
    assert torch.equal(network.lm_head.plain_weight(), embeddings)


@needs_bfloat16
def test_what_onednn_multiplies_fast_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler may not know what the CPU has."""
    monkeypatch.setattr(precision, "_cpu_flags", lambda: {"avx512_bf16"})
    assert BFloat16Linear.kernel(torch.bfloat16) is None


@needs_float32
def test_a_model_that_reads_its_weights_itself_gets_them_back() -> None:
    network = network_that_reads_a_weight().to(torch.bfloat16).float()
    verdict = prove(network, VOCABULARY, 256, "all")
    assert (verdict.path, verdict.linears[0]) == ("packed", "plain")
    assert not any(isinstance(module, SixteenBitLinear) for module in network.modules())


@needs_float32
@each_kind
def test_the_engine_gives_the_oracles_answers(kind: type[SixteenBitLinear]) -> None:
    ops = [
        Generate(1, tuple(range(3, 40)), 6),
        Generate(2, (5, 6, 7), 6),
        Score(3, tuple(range(3, 20)), (4, 5, 6)),
    ]
    judge = Oracle(saved_network(kind), tiny_loaded("llama"), 256)
    with running(tiny_loaded("llama", saved_network(kind))) as engine:
        assert engine.info().details["linears"] == kind.name
        assert engine.info().details["layers"] == "compiled"
        for answer in answers(engine, ops):
            judge.check(answer.op, answer.items)
    with running(tiny_loaded("llama", saved_network(kind)), compile_kernels=False) as engine:
        assert engine.info().details["linears"] == "onednn-packed"


@needs_bfloat16
def test_a_model_in_bfloat16_has_them_too() -> None:
    network = tiny_network("llama").to(torch.bfloat16)
    with running(tiny_loaded("llama", network)) as engine:
        details = engine.info().details
    assert (details["linears"], details["layers"]) == ("bfloat16-weights", "compiled")
