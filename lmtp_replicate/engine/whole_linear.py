"""Linear layers in float32 whose weights are whole numbers of 24 bits, with a factor per output.

They take three quarters of float32's bytes, which is what few rows wait for. A weight is as exact
as the largest of its output's: its last bit is 2^-23 of that. So sums are as exact as float32's
own, unless inputs that stand thousands of times above the others meet weights thousands of times
below the largest.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Final, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from lmtp_replicate.engine.compiled_linear import CompiledLinear
from lmtp_replicate.engine.kernels import LinearKernel
from lmtp_replicate.engine.packed_linear import PackedLinear

_AT_ONCE: Final = 128
"""Blocks of outputs that are laid out at once: of a large head's numbers none but these are needed
in several forms."""
_MARGIN: Final = 64
"""Bytes before the numbers and behind them, which a kernel may read: so many keep the alignment."""


class WholeLinear(PackedLinear):
    """`weight` has the shape and the dtype of the layer's weight, but not its numbers: these are in
    `numbers`, int8 `[block of outputs, ...]` as the class lays them out, and `factors` `[output]`.
    """

    name: ClassVar[str]
    """For MODEL_INFO."""
    description: ClassVar[str]
    """The same in words, behind a number of layers."""
    block: ClassVar[tuple[int, int]]
    """Outputs and inputs of a block of weights."""
    largest: ClassVar[int]
    """To this whole number an output's largest weight becomes."""
    tried_rows: ClassVar[Sequence[int]]
    """Numbers of rows that between them take all ways through the kernel."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, largest: Tensor, kernel: LinearKernel
    ) -> None:
        """`largest`: the size of each output's largest weight."""
        super().__init__(weight.new_zeros(()).expand(weight.shape), bias)
        outputs, inputs = (
            _filled_up(*sizes) for sizes in zip(weight.shape, self.block, strict=True)
        )
        shape = self._shape(outputs // self.block[0], inputs)
        size = torch.Size(shape).numel()
        room = torch.zeros(_MARGIN + size + _MARGIN, dtype=torch.int8)
        self.numbers = room[_MARGIN : _MARGIN + size].view(shape)
        # Outputs of nothing but tiny numbers count as zeros.
        self.factors = torch.where(largest > 1e-30, largest / self.largest, 0.0)
        for first in range(0, len(self.numbers), _AT_ONCE):
            part = slice(first * self.block[0], (first + _AT_ONCE) * self.block[0])
            whole = _whole(weight[part], self.factors[part])
            rest = 0, inputs - whole.shape[1], 0, -len(whole) % self.block[0]
            self.numbers[first : first + _AT_ONCE] = self._laid_out(pad(whole, rest))
        self.compiled = CompiledLinear(
            kernel,
            self.numbers,
            self.numbers.data_ptr(),
            (self.out_features, self.in_features),
            weight.dtype,
            bias,
            self.factors,
            self._row_room(inputs),
        )

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, kernel: LinearKernel | None) -> Self | None:
        """The layer with the plain `weight` `[out_features, in_features]`, in float32; None where
        there is no `kernel` for it, or some weight is no finite number."""
        if kernel is None:
            return None
        # Without a copy of the weight: a large head's would take as much as the head.
        largest = torch.maximum(weight.amax(1), -weight.amin(1))
        return cls(weight, bias, largest, kernel) if largest.isfinite().all() else None

    @staticmethod
    @abstractmethod
    def _shape(blocks: int, inputs: int) -> Sequence[int]:
        """That of `numbers`, for so many blocks of outputs and inputs that fill blocks."""

    @staticmethod
    @abstractmethod
    def _row_room(inputs: int) -> int:
        """Bytes that the kernel needs for each row of so many."""

    @staticmethod
    @abstractmethod
    def _laid_out(whole: Tensor) -> Tensor:
        """Numbers of 32 bits, `[output, input]`, that fill blocks, as part of `numbers`."""

    @staticmethod
    @abstractmethod
    def _read(numbers: Tensor) -> Tensor:
        """What `_laid_out` was given, as floats."""

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
        start = self.numbers.data_ptr()
        return start, start + self.numbers.nbytes

    def plain_weight(self) -> Tensor:
        """What is left of it: 24 bits of each output's largest number."""
        parts = [self._read(part) for part in torch.split(self.numbers, _AT_ONCE)]
        rows = torch.cat(parts)[: self.out_features, : self.in_features]
        return rows * self.factors[:, None]


def _whole(weight: Tensor, factors: Tensor) -> Tensor:
    return (weight / factors.clamp_min(1e-37)[:, None]).round_().int()


def _filled_up(size: int, block: int) -> int:
    return -(-size // block) * block
