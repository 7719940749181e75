"""Attention of one new token per stream whose place is known on the device only.

A captured step is run again with other streams, so nothing here may depend on a number that the
host knows: shapes come from `span`, and everything else from tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from lmtp_replicate.engine.attention import Scores, weigh
from lmtp_replicate.engine.kv_store import KVStore


class DecodeAttention(Protocol):
    """One way to compute it. `name` is told in MODEL_INFO."""

    name: str

    def span(self, streams: int, longest: int) -> int | None:
        """How many tokens of a stream a step looks at, at most, when the longest of `streams`
        streams stands on `longest` tokens; None where another path is to be taken."""

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, reads: Reads, scores: Scores
    ) -> Tensor:
        """`query`: `[stream, query_head, dim]`; `keys`, `values`: a layer's whole pool, `[token,
        kv_head, dim]`. Returns `[stream, query_head, dim]`."""


@dataclass(frozen=True, slots=True)
class Reads:
    """Which places each stream's new token sees: `lengths` from `firsts` on, its own among them.
    Both int64 `[stream]`; no length is above `span`."""

    firsts: Tensor
    lengths: Tensor
    span: int
    _seen: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def seen(self, window: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The places of the last tokens before each stream's end, `[stream, span]` or, if that is
        less, `[stream, window]`; and what to add to their scores, 0 or -inf."""
        count = min(self.span, window or self.span)
        key = (count, dtype)
        if key not in self._seen:
            ends = self.lengths[:, None]
            order = torch.arange(count, device=ends.device)
            index = (ends - count).clamp_min(0) + order
            # What is hidden is multiplied by zero, which a stranger's NaN would survive: the
            # stream's own newest token stands there instead.
            places = self.firsts[:, None] + torch.minimum(index, ends - 1)
            mask = torch.zeros(index.shape, dtype=dtype, device=ends.device)
            self._seen[key] = places, mask.masked_fill_(index >= ends, float("-inf"))
        return self._seen[key]


class DecodeStep:
    """What travels through the model's forward to its attention. `ints`: int64 `[3, stream]`, the
    tokens, their positions, and the streams' first places."""

    def __init__(self, ints: Tensor, span: int, store: KVStore, attention: DecodeAttention) -> None:
        self.tokens, self.positions, firsts = ints
        self._places = firsts + self.positions
        self._reads = Reads(firsts, self.positions + 1, span)
        self._store = store
        self._attention = attention

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        self._store.write(layer, self._places, key, value)
        keys, values = self._store.whole(layer)
        rows = query[0].transpose(0, 1)
        return self._attention.attend(rows, keys, values, self._reads, scores)[None]


class GatheredAttention:
    """Copies what the streams see next to one another and computes as for one batch. Needs nothing
    but torch; moves the keys and values three times, so it is for steps that look at few tokens."""

    name = "gathered"

    LEAST = 256
    MOST = 1 << 16
    """Tokens of all streams together, with what rounding adds."""

    def span(self, streams: int, longest: int) -> int | None:
        """`LEAST` times a power of four: few recordings, and none that looks at far too many."""
        span = self.LEAST
        while span < longest:
            span *= 4
        return span if streams * span <= self.MOST else None

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, reads: Reads, scores: Scores
    ) -> Tensor:
        streams, heads, dim = query.shape
        kv_heads = keys.shape[1]
        places, mask = reads.seen(scores.window, query.dtype)
        folded = query.reshape(streams, kv_heads, heads // kv_heads, dim)
        sinks = None if scores.sinks is None else scores.sinks.view(1, kv_heads, -1, 1)
        seen_keys, seen_values = (t[places].transpose(1, 2) for t in (keys, values))
        output = weigh(folded, seen_keys, seen_values, mask[:, None, None], scores, sinks)
        return output.reshape(streams, heads, -1)
