"""The calls that wait to be sent, and which of them go next."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lmtp_replicate.client.batch import Call
from lmtp_replicate.client.query import Query
from lmtp_replicate.protocol.batch_size import BatchSize


@dataclass(frozen=True)
class _Parcel:
    """What one query asked for in one burst."""

    burst: int
    calls: Sequence[Call]


class Waiting:
    """First come, first served; but when not all fit into a batch, queries take turns, so that one
    query's thousand ops do not hold up another's single one. Each query's own order is kept."""

    def __init__(self) -> None:
        self._lanes: dict[Query, deque[_Parcel]] = {}
        """The query whose turn is next comes first."""
        self._bursts = itertools.count(1)
        self._returned = itertools.count(0, -1)

    def add(self, calls: Iterable[Call]) -> None:
        """One burst comes last."""
        burst = next(self._bursts)
        for query, own in _by_query(calls).items():
            self._lanes.setdefault(query, deque()).append(_Parcel(burst, own))

    def put_back(self, calls: Iterable[Call]) -> None:
        """What was taken together comes first again."""
        burst = next(self._returned)
        lanes: dict[Query, deque[_Parcel]] = {}
        for query, own in _by_query(calls).items():
            lanes[query] = self._lanes.pop(query, deque())
            lanes[query].appendleft(_Parcel(burst, own))
        self._lanes = lanes | self._lanes

    def is_wanted(self) -> bool:
        """Whether anyone waits for an answer; what nobody waits for is forgotten."""
        for query, lane in list(self._lanes.items()):
            wanted = [(parcel.burst, _wanted(parcel.calls)) for parcel in lane]
            self._lanes[query] = deque(_Parcel(burst, own) for burst, own in wanted if own)
            if not self._lanes[query]:
                del self._lanes[query]
        return bool(self._lanes)

    def take_all(self) -> list[Call]:
        """Everything; nothing waits any more."""
        lanes, self._lanes = self._lanes, {}
        return [call for lane in lanes.values() for parcel in lane for call in parcel.calls]

    def take(self, size: BatchSize, *, one_burst: bool) -> list[Call]:
        """The calls that go next, together: as many as `size` may grow by, of the oldest burst or
        of all. A query's burst is parted only when it is too large for any batch."""
        self.is_wanted()
        only = min((lane[0].burst for lane in self._lanes.values()), default=0)
        taken: list[Call] = []
        has_room = True
        while has_room and (query := self._next(only if one_burst else None)) is not None:
            lane = self._lanes.pop(query)
            parcel = lane.popleft()
            fitting, size = _fitting(parcel.calls, size)
            has_room = len(fitting) == len(parcel.calls)
            if not has_room:
                # A call that is too large for any batch goes alone, and is refused alone.
                fitting = [] if taken else fitting or parcel.calls[:1]
                if rest := parcel.calls[len(fitting) :]:
                    lane.appendleft(_Parcel(parcel.burst, rest))
            taken += fitting
            if lane and fitting:
                self._lanes[query] = lane
            elif lane:
                self._lanes = {query: lane} | self._lanes
        return taken

    def _next(self, burst: int | None) -> Query | None:
        for query, lane in self._lanes.items():
            if burst is None or lane[0].burst == burst:
                return query
        return None


def _by_query(calls: Iterable[Call]) -> dict[Query, list[Call]]:
    queries: dict[Query, list[Call]] = {}
    for call in calls:
        queries.setdefault(call.query, []).append(call)
    return queries


def _wanted(calls: Iterable[Call]) -> list[Call]:
    return [call for call in calls if not call.channel.is_abandoned]


def _fitting(calls: Sequence[Call], size: BatchSize) -> tuple[Sequence[Call], BatchSize]:
    """The first of `calls` that fit, and the size with them."""
    for count, call in enumerate(calls):
        larger = size.with_op(call.op)
        if larger is None:
            return calls[:count], size
        size = larger
    return calls, size
