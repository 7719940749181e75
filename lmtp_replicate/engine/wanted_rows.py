"""The tokens of a step whose logits are wanted: of a prompt the last one, of what is scored each.

Of all others a model's last layer needs only keys and values. In a model of twelve layers that is a
thirteenth of a prompt's products.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor


class _Arguments(ctypes.Structure):
    """`Wanted` in kernels/decoder.c, which says what each field is."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("tokens", "works")),
        *((name, ctypes.c_int64) for name in ("count", "works_count")),
    )


class WantedRows:
    """`rows`: packed indices of the wanted tokens, which of every work are its last ones. `works`:
    all of the step's, as `CompiledAttention.attend` takes them. Both int64."""

    def __init__(self, rows: Tensor, works: Tensor) -> None:
        self._tokens = rows.sort().values
        starts, counts, firsts, positions = works.unbind(1)
        work_of_row = torch.searchsorted(starts.contiguous(), self._tokens, right=True) - 1
        wanted = torch.bincount(work_of_row, minlength=len(works))
        columns = wanted.cumsum(0) - wanted, wanted, firsts, positions + counts - wanted
        self._works = torch.stack(columns, 1)[wanted > 0].contiguous()
        self.arguments = _Arguments(
            self._tokens.data_ptr(), self._works.data_ptr(), len(self._tokens), len(self._works)
        )
