"""Linear layers whose weights are kept in the 16 bits in which they were saved.

Most checkpoints are in bfloat16 or float16, and many CPUs multiply neither. They make floats of
such numbers faster than memory could give whole ones, of twice the bytes, and nothing is lost:
products and sums are float32's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Final, Self

import torch
from torch import Tensor

from lmtp_replicate.engine.kernels import Kernels, LinearKernel
from lmtp_replicate.engine.panel_linear import PanelLinear
from lmtp_replicate.engine.precision import cpu_multiplies_bfloat16

_AT_ONCE: Final = 1024
"""Rows of a weight that are looked at together: a large one is never in memory twice."""


class SixteenBitLinear(PanelLinear):
    """A weight in 16 bits."""

    dtype: ClassVar[torch.dtype]
    """That of the weights in memory."""
    weight_bytes = 2

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Self:
        """The layer with the plain `weight` `[out_features, in_features]`, which it `holds`."""
        kernel = cls.kernel(weight.dtype)
        assert kernel is not None
        return cls(weight, bias, kernel)

    @classmethod
    def holds(cls, weight: Tensor) -> bool:
        """Whether there is a kernel for layers of this dtype, and all numbers of `weight` stay the
        same in 16 bits."""
        if cls.kernel(weight.dtype) is None:
            return False
        parts = torch.split(weight, _AT_ONCE)
        return all(torch.equal(part.to(cls.dtype).to(part.dtype), part) for part in parts)

    @classmethod
    def kernel(cls, dtype: torch.dtype) -> LinearKernel | None:
        """For layers whose inputs and outputs are in `dtype`, if it is used for such."""
        # bfloat16 is multiplied faster by oneDNN then, even if our compiler does not know how.
        if dtype == torch.bfloat16 and cpu_multiplies_bfloat16():
            return None
        compiled = cls.kernels(dtype)
        return None if compiled is None else cls._kernel_of(compiled)

    @staticmethod
    @abstractmethod
    def _kernel_of(compiled: Kernels) -> LinearKernel | None:
        """The kernel for such weights."""

    def _part(self, weight: Tensor, outputs: slice) -> Tensor:
        return weight[outputs].to(self.dtype)

    @classmethod
    def _laid_out(cls, part: Tensor) -> Tensor:
        return cls._by_input(part).view(torch.int8)

    @classmethod
    def _read(cls, numbers: Tensor) -> Tensor:
        return cls._by_output(numbers.view(cls.dtype))


class BFloat16Linear(SixteenBitLinear):
    """Multiplied by kernels/linear_bfloat16.c."""

    name = "bfloat16-weights"
    description = "with weights in bfloat16, as they were saved"
    dtype = torch.bfloat16

    @staticmethod
    def _kernel_of(compiled: Kernels) -> LinearKernel | None:
        return compiled.linear_bfloat16


class Float16Linear(SixteenBitLinear):
    """Multiplied by kernels/linear_float16.c."""

    name = "float16-weights"
    description = "with weights in float16, as they were saved"
    dtype = torch.float16

    @staticmethod
    def _kernel_of(compiled: Kernels) -> LinearKernel | None:
        return compiled.linear_float16


def sixteen_bit_kind(weights: Sequence[Tensor]) -> type[SixteenBitLinear] | None:
    """The kind that holds all of `weights`: one for all layers of a model in a dtype, since those
    in one layout can be run by one call."""
    kinds = BFloat16Linear, Float16Linear
    return next((kind for kind in kinds if all(map(kind.holds, weights))), None)
