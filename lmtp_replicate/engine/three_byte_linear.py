"""Linear layers in float32 whose weights are kept in three bytes (kernels/linear_bytes.c).

A CPU makes floats of them faster than memory could give whole ones; with AVX2, in units that
products leave free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from lmtp_replicate.engine.kernels import kernels
from lmtp_replicate.engine.whole_linear import WholeLinear

_OUTPUTS: Final = 16
_BYTES: Final = 3


class ThreeByteLinear(WholeLinear):
    """`numbers`: `[output / 16, input, 16, byte]`, the lowest byte first."""

    name = "three-bytes"
    description = "in whole numbers of three bytes"
    block = _OUTPUTS, 1
    largest = 0x7FFFFC  # a little more, as divisions round, is still one of three bytes
    tried_rows = 1, 2, 3, 4, 6, 7, 12, 13, 16, 17, 97
    """The kernel's tiles have up to six or sixteen rows, about the same number in all of them, and
    its parts 96."""

    @staticmethod
    def _shape(blocks: int, inputs: int) -> Sequence[int]:
        return blocks, inputs, _OUTPUTS, _BYTES

    @staticmethod
    def _row_room(inputs: int) -> int:
        return 4 * inputs

    @staticmethod
    def _laid_out(whole: Tensor) -> Tensor:
        inputs = whole.shape[1]
        by_input = whole.view(-1, _OUTPUTS, inputs).transpose(1, 2).contiguous()
        return by_input.view(torch.int8).view(-1, inputs, _OUTPUTS, 4)[..., :_BYTES]

    @staticmethod
    def _read(numbers: Tensor) -> Tensor:
        blocks, inputs = numbers.shape[:2]
        wide = torch.zeros(blocks, inputs, _OUTPUTS, 4, dtype=torch.int8)
        wide[..., 1:] = numbers  # the upper three of four have the number's sign
        whole = wide.view(torch.int32).view(blocks, inputs, _OUTPUTS) >> 8
        return whole.transpose(1, 2).reshape(blocks * _OUTPUTS, inputs).float()


def three_byte_linear(weight: Tensor, bias: Tensor | None) -> ThreeByteLinear | None:
    """The layer with the plain `weight` `[out_features, in_features]` in float32, if all its
    numbers are finite, and the CPU has AVX2 or AVX-512, but no AMX."""
    compiled, _ = kernels(weight.dtype)
    if compiled is None or compiled.linear_digits is not None:
        return None
    return ThreeByteLinear.of(weight, bias, compiled.linear_bytes)
