"""Streams that attention reads as one batch, and where it finds their keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from lmtp_replicate.engine.kv_store import KVStore
from lmtp_replicate.engine.pages import PagePool, Place
from lmtp_replicate.engine.plan import Work
from lmtp_replicate.engine.transfer import to_device


class Source(Protocol):
    """Where a batch's keys and values are."""

    def read(self, store: KVStore, layer: int, seen: slice) -> tuple[Tensor, Tensor]:
        """Keys and values of the tokens `seen`, both `[batch, kv_head, token, dim]`."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """`batch` streams, the first one's from address `first` on, and every `capacity` tokens after
    it the next one's: read without a copy."""

    first: int
    capacity: int
    batch: int

    def read(self, store: KVStore, layer: int, seen: slice) -> tuple[Tensor, Tensor]:
        return store.view(layer, self.first, self.batch, self.capacity, seen)


@dataclass(frozen=True, slots=True)
class Scattered:
    """Streams whose tokens are at `addresses`, int64 `[batch, token]`: read by copying them next to
    one another."""

    addresses: Tensor

    def read(self, store: KVStore, layer: int, seen: slice) -> tuple[Tensor, Tensor]:
        return store.gather(layer, self.addresses[:, seen])


@dataclass(slots=True)
class Group:
    """Streams with `count` tokens each: packed tokens `start..start + batch * count`, whose keys
    and values are in `source`. `positions` are the streams' first new positions."""

    start: int
    count: int
    positions: list[int]
    source: Source
    _masks: dict[tuple[object, ...], Tensor | None] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        return len(self.positions)

    @property
    def packed(self) -> slice:
        return slice(self.start, self.start + self.batch * self.count)

    def seen(self, window: int | None) -> slice:
        """The tokens that any of the group's queries may see."""
        low = max(0, min(self.positions) - window + 1) if window else 0
        return slice(low, max(self.positions) + self.count)

    def is_causal(self, window: int | None) -> bool:
        """Whether the queries are all tokens of one stream so far, and see all before them."""
        return self.positions == [0] and not (window and window < self.count)

    def mask(self, window: int | None, like: Tensor) -> Tensor | None:
        """What to add to the scores of the tokens `seen`: `[batch, 1, count, seen]` of 0 and -inf
        in `like`'s dtype; None when every query may see all of them."""
        key = (window, like.device, like.dtype)
        if key not in self._masks:
            self._masks[key] = self._make_mask(window, like)
        return self._masks[key]

    def _make_mask(self, window: int | None, like: Tensor) -> Tensor | None:
        if self.count == 1 and len(set(self.positions)) == 1:
            return None
        seen = self.seen(window)
        keys = torch.arange(seen.start, seen.stop, device=like.device)
        firsts = to_device(self.positions, torch.int64, like.device)
        queries = firsts[:, None] + torch.arange(self.count, device=like.device)
        hidden = keys > queries[..., None]
        if window:
            hidden |= keys <= queries[..., None] - window
        mask = like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
        return mask[:, None]


Batch = list[Work]
"""The works of a group: one of any length, or some of one token."""


def neighbours(works: Sequence[Work], pool: PagePool) -> list[Batch]:
    """Works whose pages lie one after another: those of single tokens in one batch as far as they
    are neighbours with places of one size."""
    batches: list[Batch] = []
    for work in sorted(works, key=lambda work: (work.length > 1, pool.address(place_of(work), 0))):
        if batches and work.length == 1 and _is_next(batches[-1], work, pool):
            batches[-1].append(work)
        else:
            batches.append([work])
    return batches


def _is_next(batch: Batch, work: Work, pool: PagePool) -> bool:
    last = place_of(batch[-1])
    here = place_of(work)
    return (
        batch[-1].length == 1
        and len(last.pages) == len(here.pages)
        and pool.address(here, 0) == pool.address(last, 0) + pool.capacity(last)
    )


def about_as_long(works: Sequence[Work]) -> list[Batch]:
    """Works whose pages lie anywhere: those of single tokens in batches of streams of which none is
    more than twice as long as another, since all of a batch are read as if as long."""
    single = sorted((work for work in works if work.length == 1), key=_size)
    batches = [list(batch) for _, batch in groupby(single, key=_size)]
    return batches + [[work] for work in works if work.length > 1]


def _size(work: Work) -> int:
    return work.stop.bit_length()


def padded_table(work: Work, page_tokens: int, count: int) -> list[int]:
    """The pages that attention reads for `work`, filled up to `count` with its last one."""
    pages = place_of(work).pages[: -(-work.stop // page_tokens)]
    return [*pages, *[pages[-1]] * (count - len(pages))]


def padded_tables(batch: Batch, page_tokens: int) -> list[list[int]]:
    """Those of each of `batch`, all as long as the longest."""
    longest = -(-max(work.stop for work in batch) // page_tokens)
    return [padded_table(work, page_tokens, longest) for work in batch]


def place_of(work: Work) -> Place:
    """Where the work's stream has its keys and values."""
    assert work.stream.place is not None
    return work.stream.place
