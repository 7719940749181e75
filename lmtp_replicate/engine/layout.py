"""How a step's works lie end to end in one forward of shape `[1, T]`.

Decoding streams (one token each) whose spans are neighbours of one size form a *group*, which
attention reads as one batch; every longer chunk is a group of its own. So works are packed in the
order of their places, and `rows` leads back to the plan's order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lmtp_replicate.engine.pages import PagePool
from lmtp_replicate.engine.plan import Plan, Work
from lmtp_replicate.engine.transfer import to_device


@dataclass(slots=True)
class Group:
    """`batch` streams with `count` tokens each: packed tokens `start..start + batch * count`,
    whose keys and values begin at place `first` and every `capacity` tokens after it.
    `positions` are the streams' first new positions."""

    start: int
    first: int
    capacity: int
    count: int
    positions: list[int]
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


@dataclass(frozen=True, slots=True)
class Layout:
    """A step's tokens as tensors. `tokens`, `positions`: `[1, T]`; `places`: `[T]` (where their
    keys and values go); `rows`: packed index of each wanted row; all int64."""

    groups: list[Group]
    tokens: Tensor
    positions: Tensor
    places: Tensor
    rows: Tensor
    end: int
    """One more than the highest of `places`."""


def lay_out(plan: Plan, pool: PagePool, device: torch.device) -> Layout:
    """The layout of `plan`."""
    works = sorted(plan.works, key=lambda work: (work.length > 1, _first(work, pool)))
    starts: dict[int, int] = {}  # arrival of the stream → packed index of its first token
    groups: list[Group] = []
    total = 0
    for work in works:
        starts[work.stream.arrival] = total
        _join(groups, work, pool, total)
        total += work.length
    tokens = [t for work in works for t in work.stream.tokens[work.start : work.stop]]
    positions = [p for work in works for p in range(work.start, work.stop)]
    places = [_first(work, pool) + p for work in works for p in range(work.start, work.stop)]
    rows = [
        starts[work.stream.arrival] + position - work.start
        for work in plan.works
        for position in work.rows
    ]
    sizes = [total, total, total, len(rows)]
    ints = torch.split(to_device(tokens + positions + places + rows, torch.int64, device), sizes)
    return Layout(groups, ints[0][None], ints[1][None], ints[2], ints[3], max(places) + 1)


def _first(work: Work, pool: PagePool) -> int:
    assert work.stream.place is not None
    return pool.place(work.stream.place, 0)


def _join(groups: list[Group], work: Work, pool: PagePool, start: int) -> None:
    """Put `work` into the last group if it is its next neighbour, else into a new one."""
    assert work.stream.place is not None
    first, capacity = _first(work, pool), pool.capacity(work.stream.place)
    last = groups[-1] if groups else None
    if (
        last is not None
        and work.length == last.count == 1
        and capacity == last.capacity
        and first == last.first + last.batch * capacity
    ):
        last.positions.append(work.start)
    else:
        groups.append(Group(start, first, capacity, work.length, [work.start]))
