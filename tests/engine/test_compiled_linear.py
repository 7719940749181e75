"""Rows of packed linear layers in C: oneDNN's numbers, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lmtp_replicate.engine.compiled_linear import CompiledLinear
from lmtp_replicate.engine.kernels import kernels
from lmtp_replicate.engine.packed_linear import PackedLinear
from lmtp_replicate.engine.packed_linears import onednn_packs_bfloat16, pack_linears
from lmtp_replicate.engine.precision import cpu_multiplies_matrices_of_bfloat16
from tests.engine.running import running
from tests.engine.test_whole_linear import has_digits
from tests.engine.tiny_models import tiny_loaded, tiny_network

pytestmark = pytest.mark.usefixtures("has_compiler", "with_onednn_only")

ROOT = Path(__file__).parents[2]
AROUND_PANELS = (96, 128, 240, 255, 256, 257, 272, 273, 300, 511, 512, 513, 1280)
"""Numbers of rows where the tiles' kernel goes another way."""


@pytest.fixture
def _compiled_anew() -> Iterator[None]:
    kernels.cache_clear()
    yield
    kernels.cache_clear()


def packed(
    inputs: int,
    outputs: int,
    *,
    bias: bool = False,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> PackedLinear:
    torch.manual_seed(inputs + outputs)
    holder = nn.Sequential(nn.Linear(inputs, outputs, bias=bias, dtype=dtype))
    with torch.inference_mode():
        pack_linears(holder, "all", **options)
    layer = holder[0]
    assert isinstance(layer, PackedLinear)
    return layer


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 64), (768, 256), (48, 40), (208, 1000)])
def test_few_rows_equal_onednn(inputs: int, outputs: int, bias: bool) -> None:
    layer = packed(inputs, outputs, bias=bias)
    compiled, layer.compiled = layer.compiled, None
    assert compiled is not None
    for rows in range(1, compiled.kernel.most_rows + 1):
        x = torch.randn(1, rows, inputs)
        assert compiled.takes(x)
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)


def has_bfloat16_products() -> bool:
    """Whether the CPU has AVX512-BF16."""
    compiled, _ = kernels(torch.bfloat16)
    return compiled is not None and compiled.without_tiles is not None


def knows_layout() -> bool:
    """Whether it is known how oneDNN lays out bfloat16 on this CPU."""
    compiled, _ = kernels(torch.bfloat16)
    assert compiled is not None
    has_matrices = cpu_multiplies_matrices_of_bfloat16()
    return compiled.has_tiles or (has_bfloat16_products() and not has_matrices)


@pytest.mark.skipif(not onednn_packs_bfloat16(), reason="oneDNN packs no bfloat16 on this CPU")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 64), (768, 256), (96, 40), (288, 1000)])
def test_rows_of_bfloat16_equal_onednn(inputs: int, outputs: int, bias: bool, threads: int) -> None:
    layer = packed(inputs, outputs, bias=bias, dtype=torch.bfloat16)
    compiled, layer.compiled = layer.compiled, None
    if compiled is None:
        assert not knows_layout()
        return
    torch.set_num_threads(threads)
    counts = [rows for rows in (*range(1, 69), *AROUND_PANELS) if rows <= compiled.kernel.most_rows]
    x = torch.randn(1, max(counts), inputs).to(torch.bfloat16)
    expected = layer(x)  # once: of some shapes oneDNN takes a second for each number of rows
    for rows in counts:
        some = x[:, :rows]
        assert compiled.takes(some)
        torch.testing.assert_close(compiled(some), expected[:, :rows], rtol=1e-2, atol=1e-3)


@pytest.mark.skipif(not onednn_packs_bfloat16(), reason="oneDNN packs no bfloat16 on this CPU")
def test_bfloat16_without_tiles_equals_onednn() -> None:
    """By the kernel of a CPU that has AVX512-BF16 only."""
    layer = packed(768, 232, bias=True, dtype=torch.bfloat16)
    compiled, layer.compiled = layer.compiled, None
    if compiled is None:
        assert not knows_layout()
        return
    library, _ = kernels(torch.bfloat16)
    assert library is not None
    compiled.kernel = library.without_tiles
    for rows in (*range(1, 20), *range(46, 50), 96, 97, 290):
        if rows > compiled.kernel.most_rows:
            break
        x = torch.randn(1, rows, 768).to(torch.bfloat16)
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-2, atol=1e-3)


@pytest.mark.skipif(not onednn_packs_bfloat16(), reason="oneDNN packs no bfloat16 on this CPU")
def test_bfloat16_of_half_a_block_is_left_to_onednn() -> None:
    assert packed(80, 64, dtype=torch.bfloat16).compiled is None


def test_deep_layers_are_taken_too() -> None:
    """Their sums differ by more, being of more numbers."""
    assert packed(14336, 64).compiled is not None


def test_other_inputs_are_left_to_onednn() -> None:
    layer = packed(64, 64)
    compiled = layer.compiled
    assert compiled is not None
    assert not compiled.takes(torch.randn(1, compiled.kernel.most_rows + 1, 64))
    assert not compiled.takes(torch.randn(1, 64, 2).transpose(1, 2))
    assert not compiled.takes(torch.randn(1, 1, 3 * 64))
    assert not compiled.takes(torch.randn(1, 1, 64).to(torch.bfloat16))
    assert layer(torch.randn(2, 5, 64)).shape == (2, 5, 64)


@pytest.mark.parametrize(("inputs", "outputs"), [(200, 1000), (65, 129), (1, 1)])
def test_a_weight_of_another_size_is_left_to_onednn(inputs: int, outputs: int) -> None:
    """oneDNN fills inputs up to a multiple of 16."""
    assert packed(inputs, outputs).compiled is None


def test_a_weight_that_lies_otherwise_is_left_to_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    call = CompiledLinear.__call__
    monkeypatch.setattr(CompiledLinear, "__call__", lambda self, x: call(self, x).flip(-1))
    assert packed(64, 64).compiled is None


@pytest.mark.usefixtures("_compiled_anew")
def test_without_a_compiler_it_is_left_to_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    kernels.cache_clear()
    assert packed(64, 64).compiled is None


def test_it_can_be_switched_off_and_is_told() -> None:
    assert packed(64, 64, compile_kernels=False).compiled is None
    for wanted in (True, False):
        with running(tiny_loaded("llama"), compile_kernels=wanted) as engine:
            reason = engine.info().details["linears_reason"]
            assert reason.endswith("; few rows of 15 by our own code") is wanted


@pytest.mark.skipif(not onednn_packs_bfloat16(), reason="oneDNN packs no bfloat16 on this CPU")
def test_it_is_told_where_all_rows_are_ours() -> None:
    with running(tiny_loaded("llama", tiny_network("llama").to(torch.bfloat16))) as engine:
        reason = engine.info().details["linears_reason"]
    compiled, _ = kernels(torch.bfloat16)
    assert compiled is not None
    are_all = knows_layout() and not compiled.has_tiles
    assert ("; all rows of " in reason) is are_all  # of all whose inputs fill oneDNN's blocks


def has_long_vectors() -> bool:
    compiled, _ = kernels(torch.float32)
    return compiled is not None and compiled.width > 8


@pytest.mark.skipif(not has_long_vectors(), reason="this CPU has no AVX-512")
@pytest.mark.parametrize(
    ("without", "layouts"),
    [
        ("-mno-avx512f", ["whole", "sixteen_bit"]),
        pytest.param(
            "-mno-amx-tile -mno-amx-int8",
            ["whole", "sixteen_bit"],
            marks=pytest.mark.skipif(not has_digits(), reason="this CPU has no AMX"),
        ),
        pytest.param(
            "-mno-avx512bf16",
            ["sixteen_bit"],
            marks=pytest.mark.skipif(
                not has_bfloat16_products(), reason="this CPU has no AVX512-BF16"
            ),
        ),
    ],
)
def test_layouts_of_our_own(without: str, layouts: list[str]) -> None:
    """Tests of `layouts`, as on a CPU that has AVX2 only, on one that has AVX-512 but no AMX, and
    on one that has AVX-512 but no products of bfloat16."""
    files = [f"tests/engine/test_{layout}_linear.py" for layout in layouts]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "CC": f"gcc {without}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
