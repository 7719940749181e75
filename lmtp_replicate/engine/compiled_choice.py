"""The best ids of logits by our own C code (kernels/choice.c), for models on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lmtp_replicate.engine.kernels import Kernels, kernels

BestAndNormaliser = Callable[[Tensor], tuple[Tensor, Tensor]]

_TRIED = 3, 1003
"""Rows and ids: not whole vectors."""
_TOLERANCE = 1e-5


def best_and_normaliser(logits: Tensor) -> tuple[Tensor, Tensor]:
    """By torch: of each row of float32 `[rows, ids]` the best id, int64 `[rows]` (the lowest of
    equal ones), and the log of the sum of all exponentials, `[rows]`."""
    # The first of equal maxima, as torch promises; on a CPU three times as fast as argmax.
    return logits.max(dim=1).indices, logits.logsumexp(dim=1)


class CompiledChoice:
    """The same by our code, for what lies on a CPU. Where a row has +inf, its log is NaN."""

    def __init__(self, compiled: Kernels) -> None:
        self._function = compiled.choice

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        if logits.stride(1) != 1:
            logits = logits.contiguous()
        rows, count = logits.shape
        best, logs = torch.empty(rows, dtype=torch.int64), logits.new_empty(rows)
        pointers = best.data_ptr(), logs.data_ptr()
        self._function(logits.data_ptr(), rows, count, logits.stride(0), *pointers)
        return best, logs

    def agrees(self) -> bool:
        """Whether it finds what torch does."""
        logits = torch.randn(_TRIED, generator=torch.Generator().manual_seed(0)) * 5
        best, logs = self(logits)
        right, expected = best_and_normaliser(logits)
        return torch.equal(best, right) and bool(((logs - expected).abs() <= _TOLERANCE).all())


def choice_for(device: torch.device, dtype: torch.dtype) -> BestAndNormaliser:
    """The faster one for the logits of a model on `device` in `dtype`."""
    compiled, _ = kernels(dtype) if device.type == "cpu" else (None, "")
    choice = None if compiled is None else CompiledChoice(compiled)
    return choice if choice is not None and choice.agrees() else best_and_normaliser
