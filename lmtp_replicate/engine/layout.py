"""How a step's works lie end to end in one forward of shape `[1, T]`: batch by batch, as attention
reads them. `rows` leads back to the plan's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import torch
from torch import Tensor

from lmtp_replicate.engine.groups import (
    Batch,
    Group,
    Neighbours,
    Scattered,
    Source,
    about_as_long,
    neighbours,
    padded_tables,
    place_of,
)
from lmtp_replicate.engine.pages import PagePool
from lmtp_replicate.engine.plan import Plan, Work
from lmtp_replicate.engine.spans import Spans
from lmtp_replicate.engine.transfer import to_device


@dataclass(frozen=True, slots=True)
class Layout:
    """A step's tokens as tensors. `tokens`, `positions`: `[1, T]`; `addresses`: `[T]` (where their
    keys and values go); `rows`: packed index of each wanted row; all int64."""

    groups: list[Group]
    tokens: Tensor
    positions: Tensor
    addresses: Tensor
    rows: Tensor
    end: int
    """One more than the highest of `addresses`."""
    context: int
    """One more than the highest of `positions`."""


def lay_out(plan: Plan, pool: PagePool, device: torch.device) -> Layout:
    """The layout of `plan`."""
    in_rows = isinstance(pool, Spans)
    batches = neighbours(plan.works, pool) if in_rows else about_as_long(plan.works)
    works = [work for batch in batches for work in batch]
    tables = [] if in_rows else [padded_tables(batch, pool.page_tokens) for batch in batches]
    addresses = [a for w in works for a in pool.addresses(place_of(w), w.start, w.stop)]
    sent = _sent(
        [
            [token for work in works for token in work.stream.tokens[work.start : work.stop]],
            [position for work in works for position in range(work.start, work.stop)],
            addresses,
            _rows(plan, works),
            *([*chain(*table)] for table in tables),
        ],
        device,
    )
    sources: list[Source] = [_neighbours(batch, pool) for batch in batches] if in_rows else []
    for table, pages in zip(tables, sent[4:], strict=True):
        sources.append(Scattered(addresses_in(pages.view(len(table), -1), pool.page_tokens)))
    starts = accumulate((len(batch) * batch[0].length for batch in batches), initial=0)
    groups = [
        Group(start, batch[0].length, [work.start for work in batch], source)
        for start, batch, source in zip(starts, batches, sources, strict=False)
    ]
    tokens, positions, targets, rows = sent[:4]
    end, context = max(addresses) + 1, max(work.stop for work in works)
    return Layout(groups, tokens[None], positions[None], targets, rows, end, context)


def addresses_in(tables: Tensor, page_tokens: int) -> Tensor:
    """The addresses of all tokens of the pages `tables`, `[batch, page]`: `[batch, token]`."""
    within = torch.arange(page_tokens, device=tables.device)
    return (tables[:, :, None] * page_tokens + within).flatten(1)


def _neighbours(batch: Batch, pool: PagePool) -> Neighbours:
    place = place_of(batch[0])
    return Neighbours(pool.address(place, 0), pool.capacity(place), len(batch))


def _rows(plan: Plan, works: Sequence[Work]) -> list[int]:
    """Where among the tokens of `works` the plan's rows are, in its order."""
    starts = accumulate((work.length for work in works), initial=0)
    start_of = {work.stream: start for work, start in zip(works, starts, strict=False)}
    return [start_of[w.stream] + position - w.start for w in plan.works for position in w.rows]


def _sent(numbers: Sequence[Sequence[int]], device: torch.device) -> Sequence[Tensor]:
    """Int64 tensors of `numbers` on `device`, by one transfer."""
    sent = to_device([*chain(*numbers)], torch.int64, device)
    return torch.split(sent, [len(part) for part in numbers])
