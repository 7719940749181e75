"""Drawing tokens: temperature, top-k, top-p, and the random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from lmtp_replicate.engine.ranking import best_first
from lmtp_replicate.engine.transfer import to_device
from lmtp_replicate.protocol.messages import Sampling

_FEW = 4096
"""Ids that are looked at first for top-p on a CPU."""


def uniform(entropy: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments.

    Counter-based: the draw at a position is the same however a stream is chunked, paused or
    batched, and on every device. 48 bits, so that its product with any weight sum is below it.
    """
    digest = blake2b(f"{entropy}:{position}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "little") / (1 << 48)


def draw(processed: Tensor, samplings: Sequence[Sampling], uniforms: Sequence[float]) -> Tensor:
    """One id per row, int64 [rows], drawn by inverse CDF in ascending order of ids.

    processed: float32 [rows, vocab]; -inf forbids. samplings: one a row, temperature > 0. The
    weights are softmax(processed / temperature), cut to the `top_k` best (equal values by
    ascending id), renormalised, then cut to the shortest run of best ones that holds `top_p` (at
    least one). The arithmetic is float64 relative to the row's best, which keeps every temperature
    finite. Rows without a possible id yield an arbitrary id.
    """
    device = processed.device
    temperatures = _column([s.temperature for s in samplings], device)
    relative = processed.double() - processed.amax(dim=1, keepdim=True)
    weights = (relative / temperatures).exp()
    weights = _cut(weights, processed, samplings)
    cumulative = weights.cumsum(dim=1)
    # right=True finds the first id whose cumulative weight is above the target: ids of weight 0
    # have their predecessor's cumulative weight and are never found.
    targets = _column(uniforms, device) * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, targets, right=True)
    return found.squeeze(1).clamp(max=processed.shape[1] - 1)


def _cut(weights: Tensor, processed: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """`weights` with those outside top-k, and then those outside top-p, set to 0."""
    width = weights.shape[1]
    limits = [min(sampling.top_k, width) or width for sampling in samplings]
    rows = [row for row, limit in enumerate(limits) if limit < width]
    if rows:
        weights = _top_k(weights, processed, rows, [limits[row] for row in rows])
    rows = [row for row, sampling in enumerate(samplings) if sampling.top_p < 1]
    if rows:
        shares = _column([samplings[row].top_p for row in rows], weights.device)
        weights = _top_p(weights, processed, rows, shares, max(limits[row] for row in rows))
    return weights


def _top_k(
    weights: Tensor, processed: Tensor, rows: Sequence[int], limits: Sequence[int]
) -> Tensor:
    index = to_device(rows, torch.int64, weights.device)
    order = best_first(processed[index], max(limits))
    ranks = torch.arange(order.shape[1], device=weights.device)
    kept = weights[index].gather(1, order) * (ranks < _column(limits, weights.device))
    return _replaced(weights, index, order, kept)


def _top_p(
    weights: Tensor, processed: Tensor, rows: Sequence[int], shares: Tensor, bound: int
) -> Tensor:
    """bound: no row has more than this many weights left."""
    index = to_device(rows, torch.int64, weights.device)
    enough = shares * weights[index].sum(dim=1, keepdim=True)
    order = _candidates(processed[index], weights[index], enough, bound)
    ranked = weights[index].gather(1, order)
    reached = ranked.cumsum(dim=1) - ranked >= enough
    return _replaced(weights, index, order, ranked * ~reached)


def _candidates(processed: Tensor, weights: Tensor, enough: Tensor, bound: int) -> Tensor:
    """Ids, best first, so many that each row has weight `enough` in them."""
    # On a CPU, sorting a vocabulary costs much and looking at a result nothing, and most
    # distributions have nearly all weight in few ids. For a look, a GPU would have to be awaited.
    if weights.is_cpu and bound > _FEW:
        order = best_first(processed, _FEW)
        if bool((weights.gather(1, order).sum(dim=1, keepdim=True) > enough).all()):
            return order
    return best_first(processed, bound)


def _replaced(weights: Tensor, rows: Tensor, ids: Tensor, kept: Tensor) -> Tensor:
    """`weights` with the given rows 0 but for `kept` at `ids`."""
    cut = torch.zeros_like(weights[rows]).scatter(1, ids, kept)
    return weights.index_copy(0, rows, cut)


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    return to_device(values, torch.float64, device).unsqueeze(1)
