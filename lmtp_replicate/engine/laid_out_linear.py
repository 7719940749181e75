"""A linear layer whose weight lies as one of our own kernels reads it (kernels/linear_*.c)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Final

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


class LaidOutLinear(PackedLinear):
    """`weight` has the shape and the dtype of the layer's weight, but not its numbers: these are in
    `numbers`, int8 `[block of outputs, ...]` as the class lays them out, and, where they are whole
    ones, `factors` `[output]`."""

    name: ClassVar[str]
    """For MODEL_INFO."""
    description: ClassVar[str]
    """The same in words, behind a number of layers."""
    block: ClassVar[tuple[int, int]]
    """Outputs and inputs of a block of weights."""
    tried_rows: ClassVar[Sequence[int]]
    """Numbers of rows that between them take all ways through the kernel."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        kernel: LinearKernel,
        factors: Tensor | None = None,
    ) -> None:
        super().__init__(weight.new_zeros(()).expand(weight.shape), bias)
        self.factors = factors
        outputs, inputs = (
            _filled_up(*sizes) for sizes in zip(weight.shape, self.block, strict=True)
        )
        shape = self._shape(outputs // self.block[0], inputs)
        size = torch.Size(shape).numel()
        room = torch.zeros(_MARGIN + size + _MARGIN, dtype=torch.int8)
        self.numbers = room[_MARGIN : _MARGIN + size].view(shape)
        for first in range(0, len(self.numbers), _AT_ONCE):
            outputs_of_part = slice(first * self.block[0], (first + _AT_ONCE) * self.block[0])
            part = self._part(weight, outputs_of_part)
            rest = 0, inputs - part.shape[1], 0, -len(part) % self.block[0]
            self.numbers[first : first + _AT_ONCE] = self._laid_out(pad(part, rest))
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

    @staticmethod
    @abstractmethod
    def _shape(blocks: int, inputs: int) -> Sequence[int]:
        """That of `numbers`, for so many blocks of outputs and inputs that fill blocks."""

    @staticmethod
    @abstractmethod
    def _row_room(inputs: int) -> int:
        """Bytes that the kernel needs for each row of so many."""

    @abstractmethod
    def _part(self, weight: Tensor, outputs: slice) -> Tensor:
        """These outputs' weights, `[output, input]`, as the numbers that are kept."""

    @classmethod
    @abstractmethod
    def _laid_out(cls, part: Tensor) -> Tensor:
        """Such numbers, where they fill blocks, as part of `numbers`."""

    @classmethod
    @abstractmethod
    def _read(cls, numbers: Tensor) -> Tensor:
        """What `_laid_out` was given, in any dtype that holds it."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        assert self.compiled is not None
        if not self.compiled.takes(x):
            dtype = str(self.weight.dtype).removeprefix("torch.")
            raise ValueError(
                f"a layer of {self.in_features} inputs in {dtype} on the CPU got {x.shape[-1]} in "
                f"{x.dtype} on {x.device}"
            )
        return self.compiled(x)

    @property
    def memory(self) -> tuple[int, int]:
        start = self.numbers.data_ptr()
        return start, start + self.numbers.nbytes

    def plain_weight(self) -> Tensor:
        """What is left of it."""
        dtype = self.weight.dtype
        parts = [self._read(part).to(dtype) for part in torch.split(self.numbers, _AT_ONCE)]
        rows = torch.cat(parts)[: self.out_features, : self.in_features]
        return rows if self.factors is None else rows * self.factors[:, None]


def _filled_up(size: int, block: int) -> int:
    return -(-size // block) * block
