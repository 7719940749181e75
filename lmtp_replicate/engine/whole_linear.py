"""Linear layers in float32 whose weights are whole numbers of 24 bits, with a factor per output.

They take three quarters of float32's bytes, which is what few rows wait for. A weight is as exact
as the largest of its output's: its last bit is 2^-23 of that. So sums are as exact as float32's
own, unless inputs that stand thousands of times above the others meet weights thousands of times
below the largest.
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from lmtp_replicate.engine.kernels import LinearKernel
from lmtp_replicate.engine.laid_out_linear import LaidOutLinear


class WholeLinear(LaidOutLinear):
    """Parts of the weight are numbers of 32 bits; of the plain weight 24 bits of each output's
    largest number are left."""

    largest: ClassVar[int]
    """To this whole number an output's largest weight becomes."""

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, kernel: LinearKernel | None) -> Self | None:
        """The layer with the plain `weight` `[out_features, in_features]`, in float32; None where
        there is no `kernel` for it, or some weight is no finite number."""
        if kernel is None:
            return None
        # Without a copy of the weight: a large head's would take as much as the head.
        largest = torch.maximum(weight.amax(1), -weight.amin(1))
        if not largest.isfinite().all():
            return None
        # Outputs of nothing but tiny numbers count as zeros.
        factors = torch.where(largest > 1e-30, largest / cls.largest, 0.0)
        return cls(weight, bias, kernel, factors)

    def _part(self, weight: Tensor, outputs: slice) -> Tensor:
        assert self.factors is not None
        factors = self.factors[outputs].clamp_min(1e-37)
        return (weight[outputs] / factors[:, None]).round_().int()
