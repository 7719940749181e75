"""Root mean square norms by our own C code (kernels/rms_norm.c), for models on a CPU.

transformers computes one by six operators of torch. Between linear layers, whose weights drive
everything else out of the caches, each of them takes far longer than its arithmetic.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmtp_replicate.engine.hooks import is_watched
from lmtp_replicate.engine.kernels import DTYPES, Kernels, kernels

logger = logging.getLogger(__name__)

_TRIED_ROWS = (1, 70)
_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Largest error, as a share of the largest number; in bfloat16 transformers rounds once more."""


@dataclass(slots=True)
class Norms:
    """The norms of a model that are not run by transformers' code, and why no others. `state`: by
    whose these are."""

    reason: str
    compiled: list[nn.Module] = field(default_factory=list)
    state: str = "compiled"

    def restore(self, reason: str) -> None:
        """Have transformers compute them again, because of `reason`."""
        for norm in self.compiled:
            del norm.forward
        self.compiled.clear()
        self.reason = reason
        logger.warning("The norms are run as transformers runs them: %s.", reason)


def compile_norms(model: PreTrainedModel) -> Norms:
    """Have our code compute what in `model` is called an RMSNorm, lies on a CPU in the model's
    dtype, and is found to compute the same. The modules stay where they are."""
    dtype = model.dtype
    candidates = [module for module in model.modules() if is_candidate(module, dtype, "cpu")]
    if not candidates:
        return Norms("none that can be compiled")
    compiled, why = kernels(dtype)
    if compiled is None:
        return Norms(why)
    norms = Norms("those that agree with transformers' own")
    for norm in candidates:
        forward = CompiledNorm(norm, compiled)
        if forward.is_possible and agrees(norm, forward):
            norm.forward = forward
            norms.compiled.append(norm)
    return norms


class NormArguments(ctypes.Structure):
    """`Norm` in decoder.c: a weight, or none, and what is added to the mean square."""

    _fields_ = (("weight", ctypes.c_void_p), ("epsilon", ctypes.c_float))


class CompiledNorm:
    """Takes the place of `norm.forward`; leaves to that what it does not know."""

    def __init__(self, norm: nn.Module, compiled: Kernels) -> None:
        self._plain = norm.forward
        self._weight: Tensor = norm.weight  # type: ignore[assignment]
        self._epsilon = epsilon_of(norm)
        self.is_possible = self._weight.shape[0] % compiled.width == 0
        """Whether the rows are whole vectors."""
        self._function = compiled.rms_norm

    @property
    def dtype(self) -> torch.dtype:
        """Of its weight, and of what it computes."""
        return self._weight.dtype

    @property
    def dim(self) -> int:
        """Numbers of a row."""
        return self._weight.shape[0]

    @property
    def arguments(self) -> NormArguments:
        """For C, as long as the weight stays where it is."""
        return NormArguments(self._weight.data_ptr(), self._epsilon)

    def __call__(self, x: Tensor) -> Tensor:
        dim = self._weight.shape[0]
        if x.dtype != self.dtype or not x.is_contiguous() or x.shape[-1] != dim:
            plain: Tensor = self._plain(x)
            return plain
        return self._run(x, None)

    def add(self, x: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        """The sum, which takes the place of `x`, and its norm. Both contiguous, of the norm's
        dtype."""
        return x, self._run(x, added)

    def _run(self, x: Tensor, added: Tensor | None) -> Tensor:
        output, dim = torch.empty_like(x), self._weight.shape[0]
        summand = None if added is None else added.data_ptr()
        pointers = output.data_ptr(), x.data_ptr(), summand, self._weight.data_ptr()
        self._function(*pointers, x.numel() // dim, dim, self._epsilon)
        return output


def is_candidate(module: nn.Module, dtype: torch.dtype, device: str) -> bool:
    """Whether it may be a norm that others can compute, in `dtype`, on that type of device."""
    weight = getattr(module, "weight", None)
    return (
        type(module).__name__.endswith("RMSNorm")
        and isinstance(weight, Tensor)
        and weight.dim() == 1
        and weight.dtype == dtype in DTYPES
        and weight.device.type == device
        and weight.is_contiguous()
        and isinstance(epsilon_of(module), float)
        and not is_watched(module)
    )


def epsilon_of(norm: nn.Module) -> Any:
    """Its two names in transformers."""
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


def agrees(norm: nn.Module, other: Callable[[Tensor], Tensor]) -> bool:
    """Whether `other` computes what `norm` does."""
    weight: Tensor = norm.weight  # type: ignore[assignment]
    dim, dtype = weight.shape[0], weight.dtype
    random = torch.Generator().manual_seed(dim)
    for rows in _TRIED_ROWS:
        x = torch.randn(1, rows, dim, generator=random).to(weight)
        for scaled in (x, x * 1e-3):  # where epsilon matters
            try:
                expected = norm(scaled)
            except Exception:  # it wants more than one argument: another kind of norm
                return False
            error = (other(scaled) - expected).abs().max()
            if not error <= _TOLERANCES[dtype] * expected.abs().max():
                return False
    return True
