"""Linear layers in float32 by a CPU's sums of whole numbers (kernels/linear_digits.c).

AMX adds up products of 8 bits thirty times as fast as AVX-512 those of float32. So a weight becomes
whole numbers of three digits of 8 bits, with a factor for each output, and so does each row of
inputs: sums as exact as float32's own, the same whatever the number of rows. Each product may be
wrong by 2^-24 of the row's largest number times the output's largest weight. So a sum is less exact
than float32's where one input stands thousands of times above the others and the output ignores it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from lmtp_replicate.engine.kernels import kernels
from lmtp_replicate.engine.whole_linear import WholeLinear

_OUTPUTS: Final = 32
_INPUTS: Final = 64
"""Of a block of weights."""
_DIGITS: Final = 3
_MOST_INPUTS: Final = 43_000
"""Three products of digits, 48 896 at most, for each input: more than so many could leave the range
of 32 bits."""


class DigitLinear(WholeLinear):
    """`numbers`: `[output / 32, digit, input / 64, 2, 16, 16, 4]` (by halves of the outputs, and
    fours of the inputs)."""

    name = "digits"
    description = "in whole numbers of three digits, multiplied by AMX"
    block = _OUTPUTS, _INPUTS
    largest = 0x7F7E00  # the first digit of a little more would not be one of 8 bits
    tried_rows = 1, 16, 17, 33, 64, 290
    """The kernel's tiles have 16 rows, in pairs, and its panels 256."""

    @staticmethod
    def _shape(blocks: int, inputs: int) -> Sequence[int]:
        return blocks, _DIGITS, inputs // _INPUTS, 2, _INPUTS // 4, _OUTPUTS // 2, 4

    @staticmethod
    def _row_room(inputs: int) -> int:
        return _DIGITS * inputs + torch.float32.itemsize  # its digits and their factor

    @staticmethod
    def _laid_out(whole: Tensor) -> Tensor:
        second = (whole + 128) >> 8
        first = (second + 128) >> 8
        # The lowest 8 bits of each, read as a number with a sign, are what the higher ones leave.
        digits = torch.stack([digit.to(torch.int8) for digit in (first, second, whole)])
        deep = whole.shape[1] // _INPUTS
        blocks = digits.view(_DIGITS, -1, 2, _OUTPUTS // 2, deep, _INPUTS // 4, 4)
        return blocks.permute(1, 0, 4, 2, 5, 3, 6)

    @staticmethod
    def _read(numbers: Tensor) -> Tensor:
        by_place = numbers.permute(0, 3, 5, 2, 4, 6, 1)  # [block, 2, 16, block, 16, 4, digit]
        whole = by_place.float() @ torch.tensor([65536.0, 256.0, 1.0])
        return whole.reshape(numbers.shape[0] * _OUTPUTS, -1)


def digit_linear(weight: Tensor, bias: Tensor | None) -> DigitLinear | None:
    """The layer with the plain `weight` `[out_features, in_features]` in float32, if all its
    numbers are finite, and the CPU has such sums and they hold so many inputs."""
    compiled, _ = kernels(weight.dtype)
    kernel = None if compiled is None else compiled.linear_digits
    return DigitLinear.of(weight, bias, kernel) if weight.shape[1] <= _MOST_INPUTS else None
