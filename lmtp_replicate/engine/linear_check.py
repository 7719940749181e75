"""A linear layer held against the one whose place it is to take, on its real weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lmtp_replicate.engine.packed_linear import PackedLinear

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Largest root mean square difference between the two, as a share of the output's. What is of
another dtype is not packed."""

Layer = Callable[[Tensor], Tensor]


def forget_inputs() -> None:
    """Free what the layers were tried with."""
    _random.cache_clear()


def equals(tried: Layer, right: Layer, shape: PackedLinear, counts: Sequence[int]) -> bool:
    """Whether `tried` computes what `right` does, for so many rows."""
    tolerance = TOLERANCES[shape.weight.dtype]
    return all(error <= tolerance for _, error in errors(tried, right, shape, counts))


def errors(
    tried: Layer, right: Layer, shape: PackedLinear, counts: Sequence[int]
) -> Iterator[tuple[int, float]]:
    """Numbers of rows, and how far off `tried` is for so many: `_error`. `shape` has the layers'
    inputs and dtype."""
    x = _random(max(counts), shape.in_features, shape.weight.dtype)
    expected = right(x)  # once for all: at load this is a pass over all weights
    for rows in counts:
        yield rows, _error(tried(x[:rows]), expected[:rows])


@lru_cache(maxsize=16)
def _random(rows: int, inputs: int, dtype: torch.dtype) -> Tensor:
    """The same for all layers: making it takes longer than multiplying it."""
    random = torch.Generator().manual_seed(rows)
    return torch.randn(rows, inputs, generator=random).to(dtype)


def _error(found: Tensor, expected: Tensor) -> float:
    """The root mean square difference as a share of what is expected: NaN for NaN, and 0 where
    nothing but zeros is expected and found."""
    found, expected = found.float(), expected.float()
    difference = (found - expected).square().mean().sqrt().item()
    size = expected.square().mean().sqrt().item()
    return difference / size if difference else difference
