"""One user of the hub, and what its ops have cost: a client, which for LMQL is a query."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable

from lmtp_replicate.client.stats import Stats, Tally

_numbers = itertools.count(1)


class Query:
    """`begin`, `finish` and the tally belong to the hub's thread."""

    def __init__(self) -> None:
        self.number = next(_numbers)
        self.tally = Tally()
        self._running = 0
        self._when_settled: deque[Callable[[Stats], None]] = deque()

    def begin(self) -> None:
        """An op was asked for, or a prediction made that works for this query."""
        self._running += 1

    def finish(self) -> None:
        """What began has ended."""
        self._running -= 1
        self._tell()

    def when_settled(self, tell: Callable[[Stats], None]) -> None:
        """Call `tell` once, with the costs, as soon as nothing of the query runs any more: at
        once, or later on the hub's thread. Any thread."""
        self._when_settled.append(tell)
        self._tell()

    def _tell(self) -> None:
        # Whoever takes it out of the deque calls it: this thread or the hub's, never both.
        while self._running == 0:
            try:
                tell = self._when_settled.popleft()
            except IndexError:
                return
            tell(self.tally.stats)
