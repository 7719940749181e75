"""How fast an endpoint's predictions go, learned from them, and what follows from it: for how long
an op waits for company, and whether an answer is waited for with the create or streamed."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from lmtp_replicate.protocol.messages import Generate, Item, Op, TokenItem

SHARE: Final = 0.1
"""Of the time that a create takes: what an op may wait for company."""
LONGEST_WINDOW: Final = 0.05
USUAL_CREATE: Final = 0.15
"""Seconds, as long as none was measured."""
LONGEST_WAIT: Final = 3
"""Seconds for which a create's answer may be held back: until it comes, nobody knows the id that a
cancel needs."""
MOST_UNHEARD: Final = 3
"""After so many waits that the server did not grant, none is asked for any more."""
_WEIGHT: Final = 0.3


class Pace:
    """One endpoint's. All times are in seconds, None as long as unknown."""

    def __init__(self) -> None:
        self.create: float | None = None
        """From a create's request to its answer."""
        self.connect: float | None = None
        """Until an event stream is open."""
        self.first: float | None = None
        """From the create to the first output."""
        self.token: float | None = None
        """From one token of a stream to the next."""
        self._unheard = 0

    @property
    def window(self) -> float:
        """Seconds for which an op may wait for company while others are in flight."""
        return min(LONGEST_WINDOW, SHARE * (self.create or USUAL_CREATE))

    def seconds_to_wait(self, ops: Sequence[Op]) -> int | None:
        """For `Prefer: wait`, or None where streaming the answer is better.

        A stream costs one more round trip, but brings each token as soon as it is there. So one
        token is waited for, and more only where all are there sooner than a stream was open.
        """
        tokens = max((op.max_tokens for op in ops if isinstance(op, Generate)), default=1)
        if self._unheard >= MOST_UNHEARD:
            return None
        if tokens > 1:
            if self.first is None or self.token is None or self.connect is None:
                return None
            if self.first + (tokens - 1) * self.token > self.connect:
                return None
        seconds = max(1, math.ceil(2 * (self.first or 0.0)))
        return seconds if seconds <= LONGEST_WAIT else None

    def created(self, seconds: float) -> None:
        """A create was answered at once."""
        self.create = _mean(self.create, seconds)

    def waited(self, asked: int, seconds: float, *, is_answered: bool) -> None:
        """A create that asked for `asked` seconds was answered after `seconds`."""
        if is_answered:
            self._unheard = 0
            self.began(max(0.0, seconds - (self.create or 0.0)))
        elif seconds < asked:
            self._unheard += 1
        else:
            self.began(float(asked))

    def connected(self, seconds: float) -> None:
        """An event stream was opened."""
        self.connect = _mean(self.connect, seconds)

    def began(self, seconds: float) -> None:
        """The first output came so long after the create. That of a cold model says nothing."""
        if seconds <= LONGEST_WAIT:
            self.first = _mean(self.first, seconds)

    def went(self, progress: Progress) -> None:
        """A prediction's tokens have come."""
        if progress.seconds_per_token is not None:
            self.token = _mean(self.token, progress.seconds_per_token)


class Progress:
    """When the tokens of one prediction come."""

    def __init__(self) -> None:
        self.began: float | None = None
        """When the first came, in the loop's time."""
        self._last = 0.0
        self._later: Counter[int | None] = Counter()

    def saw(self, items: Iterable[Item]) -> None:
        """They have arrived now."""
        tokens = [item.stream_id for item in items if isinstance(item, TokenItem)]
        now = asyncio.get_running_loop().time()
        if self.began is None:
            self.began = now  # how long those took that came together nobody knows
        elif tokens:
            self._last = now
            self._later.update(tokens)

    @property
    def seconds_per_token(self) -> float | None:
        """Of the longest stream."""
        if self.began is None or not self._later:
            return None
        return (self._last - self.began) / max(self._later.values())


def _mean(known: float | None, found: float) -> float:
    """Newer ones count more."""
    return found if known is None else known + _WEIGHT * (found - known)
