"""Linear layers whose weights lie in panels of 16 outputs (kernels/panels.h)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

import torch
from torch import Tensor

from lmtp_replicate.engine.kernels import Kernels, kernels
from lmtp_replicate.engine.laid_out_linear import LaidOutLinear

_OUTPUTS: Final = 16


class PanelLinear(LaidOutLinear):
    """`numbers`: `[output / 16, input, 16 weights]`."""

    weight_bytes: ClassVar[int]
    block = _OUTPUTS, 1
    tried_rows = 1, 2, 3, 4, 6, 7, 12, 13, 16, 17, 97
    """The kernel's tiles have up to six or sixteen rows, about the same number in all of them, and
    its parts 96."""

    @staticmethod
    def kernels(dtype: torch.dtype) -> Kernels | None:
        """Those for layers in `dtype`, unless digits, of more bytes than some panels' weights, are
        multiplied faster where there are many rows."""
        compiled, _ = kernels(dtype)
        return None if compiled is None or compiled.linear_digits is not None else compiled

    @classmethod
    def _shape(cls, blocks: int, inputs: int) -> Sequence[int]:
        return blocks, inputs, _OUTPUTS * cls.weight_bytes

    @staticmethod
    def _row_room(inputs: int) -> int:
        return torch.float32.itemsize * inputs

    @staticmethod
    def _by_input(part: Tensor) -> Tensor:
        """`[output, input]` as `[output / 16, input, 16]`."""
        return part.view(-1, _OUTPUTS, part.shape[1]).transpose(1, 2).contiguous()

    @staticmethod
    def _by_output(panels: Tensor) -> Tensor:
        """The way back."""
        return panels.transpose(1, 2).reshape(-1, panels.shape[1])
