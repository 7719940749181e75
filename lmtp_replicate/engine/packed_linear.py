"""A linear layer whose weight has been laid out: by oneDNN, unless a subclass does it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lmtp_replicate.engine.compiled_linear import CompiledLinear


class PackedLinear(nn.Module):
    """`x` `[..., in_features]` times `weight` `[out_features, in_features]`, transposed, plus
    `bias`. The weight has a layout of oneDNN's: it tells its shape and dtype, as some models ask,
    but no operator that reads its numbers takes it."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.compiled: CompiledLinear | None = None
        """Our own code, where it has been found to compute the same."""
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Tensor) -> Tensor:
        if self.compiled is not None and self.compiled.takes(x):
            return self.compiled(x)
        linear: Any = torch.ops.mkldnn._linear_pointwise
        product: Tensor = linear(x, self.weight, self.bias, "none", [], "")
        return product

    @property
    def memory(self) -> tuple[int, int]:
        """The addresses where the weight's memory starts and ends."""
        start: int = torch.ops.mkldnn.data_ptr(self.weight)
        return start, start + torch.ops.mkldnn._nbytes(self.weight)

    def plain_weight(self) -> Tensor:
        """A copy of the weight as torch lays it out."""
        return self.weight.to_dense()
