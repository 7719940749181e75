"""Linear layers in float32 by a CPU's sums of whole numbers (kernels/linear_digits.c).

AMX adds up products of 8 bits thirty times as fast as AVX-512 those of float32. So a weight becomes
whole numbers of three digits of 8 bits, with a factor for each output: sums as exact as float32's
own, the same whatever the number of rows, and three quarters of the bytes. Each product may be
wrong by 2^-24 of the row's largest number times the output's largest weight. So a sum is less exact
than float32's where one input stands thousands of times above the others and the output ignores it.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from lmtp_replicate.engine.compiled_linear import CompiledLinear
from lmtp_replicate.engine.kernels import LinearKernel, kernels
from lmtp_replicate.engine.packed_linear import PackedLinear

_OUTPUTS: Final = 32
_INPUTS: Final = 64
"""Of a block of weights."""
_DIGITS: Final = 3
_LARGEST: Final = 0x7F7E00
"""Whole number; the first digit of a little more would not be one of 8 bits."""
_MOST_INPUTS: Final = 43_000
"""Three products of digits, 48 896 at most, for each input: more than so many could leave the range
of 32 bits."""
_AT_ONCE: Final = 128
"""Blocks of outputs that are cut at once: of a large head's numbers none but these are needed in
several forms."""


class DigitLinear(PackedLinear):
    """`weight` has the shape and the dtype of the layer's weight, but not its numbers: these are in
    `digits`, int8 `[output / 32, digit, input / 64, 2, 16, 16, 4]` (by halves of the outputs, and
    fours of the inputs), and `factors` `[output]`."""

    def __init__(self, weight: Tensor, bias: Tensor | None, kernel: LinearKernel) -> None:
        super().__init__(weight.new_zeros(()).expand(weight.shape), bias)
        deep = _filled_up(self.in_features, _INPUTS)
        blocks = _filled_up(self.out_features, _OUTPUTS) // _OUTPUTS
        shape = blocks, _DIGITS, deep // _INPUTS, 2, _INPUTS // 4, _OUTPUTS // 2, 4
        self.digits = torch.zeros(shape, dtype=torch.int8)
        self.factors = _factors(weight)
        for first in range(0, blocks, _AT_ONCE):
            part = slice(first * _OUTPUTS, (first + _AT_ONCE) * _OUTPUTS)
            cut = _cut(weight[part], self.factors[part])
            self.digits[first : first + _AT_ONCE] = cut
        self.compiled = CompiledLinear(
            kernel,
            self.digits,
            self.digits.data_ptr(),
            (self.out_features, self.in_features),
            weight.dtype,
            bias,
            self.factors,
            _DIGITS * deep + self.factors.itemsize,
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        assert self.compiled is not None
        if not self.compiled.takes(x):
            raise ValueError(
                f"a layer of {self.in_features} inputs in float32 on the CPU got {x.shape[-1]} in "
                f"{x.dtype} on {x.device}"
            )
        return self.compiled(x)

    @property
    def memory(self) -> tuple[int, int]:
        start = self.digits.data_ptr()
        return start, start + self.digits.nbytes

    def plain_weight(self) -> Tensor:
        """What is left of it: 24 bits of each output's largest number."""
        parts = [_joined(part) for part in torch.split(self.digits, _AT_ONCE)]
        rows = torch.cat(parts)[: self.out_features, : self.in_features]
        return rows * self.factors[:, None]


def digit_linear(weight: Tensor, bias: Tensor | None) -> DigitLinear | None:
    """The layer with the plain `weight` `[out_features, in_features]` in float32, where the CPU has
    such sums and they hold so many inputs."""
    compiled, _ = kernels(weight.dtype)
    kernel = None if compiled is None else compiled.linear_digits
    if kernel is None or weight.shape[1] > _MOST_INPUTS or not weight.isfinite().all():
        return None
    return DigitLinear(weight, bias, kernel)


def _factors(weight: Tensor) -> Tensor:
    """By how much the whole numbers of each output are multiplied; outputs of nothing but tiny
    numbers count as zeros."""
    largest = weight.abs().amax(1)
    return torch.where(largest > 1e-30, largest / _LARGEST, 0.0)


def _cut(weight: Tensor, factors: Tensor) -> Tensor:
    """The digits of `weight`, as `DigitLinear.digits`, for its outputs."""
    outputs, inputs = weight.shape
    whole = (weight / factors.clamp_min(1e-37)[:, None]).round_().int()
    rest = (0, _filled_up(inputs, _INPUTS) - inputs, 0, _filled_up(outputs, _OUTPUTS) - outputs)
    whole = torch.nn.functional.pad(whole, rest)
    second = (whole + 128) >> 8
    first = (second + 128) >> 8
    # The lowest 8 bits of each, read as a number with a sign, are what the higher ones leave.
    digits = torch.stack([digit.to(torch.int8) for digit in (first, second, whole)])
    deep = whole.shape[1] // _INPUTS
    blocks = digits.view(_DIGITS, -1, 2, _OUTPUTS // 2, deep, _INPUTS // 4, 4)
    return blocks.permute(1, 0, 4, 2, 5, 3, 6)


def _joined(digits: Tensor) -> Tensor:
    """The whole numbers that `_cut` has cut, as floats."""
    by_place = digits.permute(0, 3, 5, 2, 4, 6, 1)  # [block, 2, 16, block, 16, 4, digit]
    whole = by_place.float() @ torch.tensor([65536.0, 256.0, 1.0])
    return whole.reshape(digits.shape[0] * _OUTPUTS, -1)


def _filled_up(size: int, block: int) -> int:
    return -(-size // block) * block
