"""Linear layers in float32 whose weights are kept in three bytes (kernels/linear_bytes.c).

A CPU makes floats of them faster than memory could give whole ones; with AVX2, in units that
products leave free.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmtp_replicate.engine.panel_linear import PanelLinear
from lmtp_replicate.engine.whole_linear import WholeLinear


class ThreeByteLinear(WholeLinear, PanelLinear):
    """The lowest byte of a weight is the first."""

    name = "three-bytes"
    description = "in whole numbers of three bytes"
    weight_bytes = 3
    largest = 0x7FFFFC  # a little more, as divisions round, is still one of three bytes

    @classmethod
    def _laid_out(cls, part: Tensor) -> Tensor:
        panels = cls._by_input(part)
        return panels.view(torch.int8).view(*panels.shape, 4)[..., : cls.weight_bytes].flatten(2)

    @classmethod
    def _read(cls, numbers: Tensor) -> Tensor:
        by_weight = numbers.view(*numbers.shape[:2], -1, cls.weight_bytes)
        wide = torch.zeros(*by_weight.shape[:3], 4, dtype=torch.int8)
        wide[..., 1:] = by_weight  # the upper three of four have the number's sign
        whole = wide.view(torch.int32)[..., 0] >> 8
        return cls._by_output(whole).float()


def three_byte_linear(weight: Tensor, bias: Tensor | None) -> ThreeByteLinear | None:
    """The layer with the plain `weight` `[out_features, in_features]` in float32, if all its
    numbers are finite, and the CPU has AVX2 or AVX-512, but no AMX."""
    compiled = ThreeByteLinear.kernels(weight.dtype)
    return None if compiled is None else ThreeByteLinear.of(weight, bias, compiled.linear_bytes)
