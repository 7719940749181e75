"""Drawing tokens: temperature, top-k, top-p, and the random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from lmtp_replicate.engine.ranking import best_first
from lmtp_replicate.protocol.messages import Sampling


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
    temperatures = torch.tensor([s.temperature for s in samplings], dtype=torch.float64)
    relative = processed.double() - processed.amax(dim=1, keepdim=True)
    weights = (relative / temperatures.to(device).unsqueeze(1)).exp()
    weights = _cut(weights, processed, samplings)
    cumulative = weights.cumsum(dim=1)
    targets = torch.tensor(uniforms, dtype=torch.float64).to(device).unsqueeze(1)
    # right=True finds the first id whose cumulative weight is above the target: ids of weight 0
    # have their predecessor's cumulative weight and are never found.
    found = torch.searchsorted(cumulative, targets * cumulative[:, -1:], right=True)
    return found.squeeze(1).clamp(max=processed.shape[1] - 1)


def _cut(weights: Tensor, processed: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """`weights` with those outside top-k and top-p set to 0. Rows are cut in two groups, since
    those with a top-k need no sort of the whole vocabulary."""
    width = weights.shape[1]
    short = [row for row, s in enumerate(samplings) if 0 < s.top_k < width]
    full = [row for row, s in enumerate(samplings) if not 0 < s.top_k < width and s.top_p < 1]
    for rows in (short, full):
        if not rows:
            continue
        chosen = [samplings[row] for row in rows]
        counts = [s.top_k if 0 < s.top_k < width else width for s in chosen]
        index = torch.tensor(rows, device=weights.device)
        order = best_first(processed[index], max(counts))
        kept = _kept(weights[index].gather(1, order), counts, [s.top_p for s in chosen])
        cut = torch.zeros_like(weights[index]).scatter(1, order, kept)
        weights = weights.index_copy(0, index, cut)
    return weights


def _kept(ranked: Tensor, counts: Sequence[int], shares: Sequence[float]) -> Tensor:
    """`ranked` weights (best first) with all after the first `counts` and then all after the
    first `shares` of the remaining sum set to 0."""
    device = ranked.device
    ranks = torch.arange(ranked.shape[1], device=device)
    ranked = ranked * (ranks < torch.tensor(counts, device=device).unsqueeze(1))
    share = torch.tensor(shares, dtype=torch.float64).to(device).unsqueeze(1)
    cumulative = ranked.cumsum(dim=1)
    reached = cumulative - ranked >= share * cumulative[:, -1:]
    # top_p = 1 keeps all, whatever rounding makes of the last sum; the best one always stays.
    return ranked * (~reached | (share >= 1) | (ranks == 0))
