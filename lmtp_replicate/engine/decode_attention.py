"""Attention of one new token per stream whose pages are known on the device only.

A captured step is run again with other streams, so nothing here may depend on a number that the
host knows: shapes come from the tables' width, and everything else from tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from lmtp_replicate.engine.attention import Scores, weigh
from lmtp_replicate.engine.kv_store import KVStore, gathered

Made = TypeVar("Made")


class DecodeAttention(Protocol):
    """One way to compute it. `name` is told in MODEL_INFO. `most`: up to how many tokens of all
    streams together, with what rounding adds, it is worth trying. `is_compiled`: whether a compiler
    is awaited first, for each number of streams, for seconds."""

    name: str
    most: int
    is_compiled: bool

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, reads: Reads, scores: Scores
    ) -> Tensor:
        """`query`: `[stream, query_head, dim]`; `keys`, `values`: a layer's whole pool, `[token,
        kv_head, dim]`. Returns `[stream, query_head, dim]`."""


@dataclass(frozen=True, slots=True)
class Reads:
    """What each stream's new token sees: the first `lengths` tokens, its own among them, of the
    pages in `tables`. Int64, `[stream]` and `[stream, page]`."""

    tables: Tensor
    lengths: Tensor
    page_tokens: int
    _made: dict[Hashable, Any] = field(default_factory=dict)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` makes, for all layers of the step."""
        if key not in self._made:
            self._made[key] = make()
        made: Made = self._made[key]
        return made

    def addresses(self, index: Tensor) -> Tensor:
        """Where the streams' tokens `index`, `[stream, token]`, lie in the pool."""
        pages = self.tables.gather(1, index // self.page_tokens)
        return pages * self.page_tokens + index % self.page_tokens

    def seen(self, window: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The addresses of the last tokens before each stream's end, `[stream, token]`, as many as
        the tables or, if that is less, the window can hold; and what to add to their scores, 0 or
        -inf."""
        return self.once((window, dtype), lambda: self._last(window, dtype))

    def _last(self, window: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        span = self.tables.shape[1] * self.page_tokens
        count = min(span, window or span)
        ends = self.lengths[:, None]
        index = (ends - count).clamp_min(0) + torch.arange(count, device=ends.device)
        # What is hidden is multiplied by zero, which a stranger's NaN would survive: the stream's
        # own newest token stands there instead.
        addresses = self.addresses(torch.minimum(index, ends - 1))
        mask = torch.zeros(index.shape, dtype=dtype, device=ends.device)
        return addresses, mask.masked_fill_(index >= ends, float("-inf"))


class DecodeStep:
    """What travels through the model's forward to its attention. `tokens`, `positions`: int64
    `[stream]`; `tables`: int64 `[stream, page]`."""

    def __init__(
        self,
        tokens: Tensor,
        positions: Tensor,
        tables: Tensor,
        store: KVStore,
        attention: DecodeAttention,
    ) -> None:
        self.tokens, self.positions = tokens, positions
        self._reads = Reads(tables, positions + 1, store.page_tokens)
        self._addresses = self._reads.addresses(positions[:, None])[:, 0]
        self._store = store
        self._attention = attention

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        self._store.write(layer, self._addresses, key, value)
        keys, values = self._store.whole(layer)
        rows = query[0].transpose(0, 1)
        return self._attention.attend(rows, keys, values, self._reads, scores)[None]


class GatheredAttention:
    """Copies what the streams see next to one another and computes as for one batch. Needs nothing
    but torch; moves the keys and values three times, so it is for steps that look at few tokens."""

    name = "gathered"
    most = 1 << 16
    is_compiled = False

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, reads: Reads, scores: Scores
    ) -> Tensor:
        streams, heads, dim = query.shape
        kv_heads = keys.shape[1]
        addresses, mask = reads.seen(scores.window, query.dtype)
        folded = query.reshape(streams, kv_heads, heads // kv_heads, dim)
        sinks = None if scores.sinks is None else scores.sinks.view(1, kv_heads, -1, 1)
        seen_keys, seen_values = (gathered(tensor, addresses) for tensor in (keys, values))
        output = weigh(folded, seen_keys, seen_values, mask[:, None, None], scores, sinks)
        return output.reshape(streams, heads, -1)
