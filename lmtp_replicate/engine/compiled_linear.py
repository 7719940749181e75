"""Linear layers by our own C code: kernels/linear*.c.

linear.c, of few rows or with AVX512-BF16 of any number, and linear_tiles.c, with AMX of up to some
hundred, read the weight where oneDNN has laid it out, so that there is no second copy. Whether it
lies as they expect is not documented: the caller has to try each layer.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from lmtp_replicate.engine.kernels import LinearKernel, kernels


class LinearArguments(ctypes.Structure):
    """`Linear` in the source, which says what each field is."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "factors", "bias")),
        *((name, ctypes.c_int64) for name in ("inputs", "outputs")),
    )


class CompiledLinear:
    """`x` `[..., inputs]`, of at most `kernel.most_rows` rows, times a weight of `shape` `[outputs,
    inputs]`, by `kernel`. The weight is `laid_out` at `address`. `bias` and `factors`: both
    `[outputs]`, or None. Of each row the kernel needs `row_room` bytes for itself."""

    def __init__(
        self,
        kernel: LinearKernel,
        laid_out: Tensor,
        address: int,
        shape: tuple[int, int],
        dtype: torch.dtype,
        bias: Tensor | None,
        factors: Tensor | None = None,
        row_room: int = 0,
    ) -> None:
        outputs, inputs = shape
        self.kernel = kernel
        self.row_room = row_room
        self._dtype = dtype
        self._tensors = laid_out, bias, factors  # kept: their memory is what the pointers lead to
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in (factors, bias)]
        self.arguments = LinearArguments(address, *pointers, inputs, outputs)
        self._inputs, self._outputs = inputs, outputs

    def takes(self, x: Tensor) -> bool:
        """Whether it can compute `x`."""
        return (
            x.numel() <= self.kernel.most_rows * self._inputs
            and x.shape[-1] == self._inputs
            and x.dtype == self._dtype
            and x.device.type == "cpu"
            and x.is_contiguous()
        )

    def __call__(self, x: Tensor) -> Tensor:
        output = x.new_empty(*x.shape[:-1], self._outputs)
        rows = x.numel() // self._inputs
        room = torch.empty(rows * self.row_room, dtype=torch.int8)
        pointer = ctypes.c_void_p(output.data_ptr())
        to, layers = ctypes.byref(pointer), ctypes.byref(self.arguments)
        self.kernel.function(layers, to, 1, x.data_ptr(), rows, room.data_ptr())
        return output


def compiled_linear(weight: Tensor, bias: Tensor | None) -> CompiledLinear | None:
    """The code for a packed `weight`, if it is compiled and the weight's memory has the size that
    it expects."""
    compiled, _ = kernels(weight.dtype)
    if compiled is None or compiled.linear is None:
        return None
    outputs, inputs = weight.shape
    wide, deep = compiled.linear_block
    laid_out = -(-outputs // wide) * wide * inputs * weight.itemsize
    if inputs % deep or torch.ops.mkldnn._nbytes(weight) != laid_out:
        return None
    address = torch.ops.mkldnn.data_ptr(weight)
    shape = outputs, inputs
    return CompiledLinear(compiled.linear, weight, address, shape, weight.dtype, bias)
