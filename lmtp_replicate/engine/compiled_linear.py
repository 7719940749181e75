"""Packed linear layers of few rows by our own C code (kernels/linear.c), or with AMX of up to some
hundred (linear_tiles.c).

It reads the weight where oneDNN has laid it out, so there is no second copy. Whether it lies as the
code expects is not documented: the caller has to try each layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmtp_replicate.engine.kernels import Kernels, kernels


class CompiledLinear:
    """`x` `[..., in_features]`, of at most `most_rows` rows, times a packed weight."""

    def __init__(self, weight: Tensor, bias: Tensor | None, compiled: Kernels) -> None:
        self.most_rows = compiled.linear_rows
        self._outputs, self._inputs = weight.shape
        self._tensors = weight, bias  # kept: their memory is what the pointers lead to
        self._weight: int = torch.ops.mkldnn.data_ptr(weight)
        self._bias = None if bias is None else bias.data_ptr()
        self._function = compiled.linear

    def takes(self, x: Tensor) -> bool:
        """Whether it can compute `x`."""
        return (
            x.numel() <= self.most_rows * self._inputs
            and x.shape[-1] == self._inputs
            and x.dtype == self._tensors[0].dtype
            and x.is_contiguous()
        )

    def __call__(self, x: Tensor) -> Tensor:
        output = x.new_empty(*x.shape[:-1], self._outputs)
        rows = x.numel() // self._inputs
        pointers = output.data_ptr(), x.data_ptr(), self._weight, self._bias
        self._function(*pointers, rows, self._inputs, self._outputs)
        return output


def compiled_linear(weight: Tensor, bias: Tensor | None) -> CompiledLinear | None:
    """The code for a packed `weight`, if it is compiled and the weight's memory has the size that
    it expects."""
    compiled, _ = kernels(weight.dtype)
    if compiled is None:
        return None
    outputs, inputs = weight.shape
    wide, deep = compiled.linear_block
    laid_out = -(-outputs // wide) * wide * inputs * weight.itemsize
    if inputs % deep or torch.ops.mkldnn._nbytes(weight) != laid_out:
        return None
    return CompiledLinear(weight, bias, compiled)
