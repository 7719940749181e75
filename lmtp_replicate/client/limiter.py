"""How many predictions may be created: one account's creates wait here instead of being refused.

Replicate takes 600 creates a minute, and fewer from an account with little credit; what it says
when it refuses (429) teaches the real limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections import deque
from collections.abc import Mapping
from typing import Final

from lmtp_replicate.client.retry import Failure, delay_before_retry

log = logging.getLogger(__name__)
MINUTE: Final = 60.0
"""Seconds over which creates are counted."""
MOST_CREATES: Final = 600
"""Creates a minute that Replicate documents."""
MOST_UNANSWERED: Final = 5
"""Creates on their way at a time, as long as no answer has told that more are possible: all of them
may be refused."""
NOTICEABLE: Final = 1.0
"""Seconds of waiting from which on the user is told."""


class CreateLimiter:
    """One account's. Hub's thread only."""

    def __init__(self) -> None:
        self.limit: float = MOST_CREATES
        """Creates a minute that are thought to be possible."""
        self._accepted: deque[float] = deque()
        self._granted = 0
        self._unanswered = 0
        self._remaining = 0
        self._refusals = 0
        """In a row, those of one wave counted as one."""
        self._last_refusal = -math.inf
        self._last_create = -math.inf
        self._last_notice = -math.inf
        self._free_at = -math.inf
        self._line = asyncio.Lock()
        self._answered = asyncio.Event()

    async def turn(self) -> Create:
        """Wait until one more prediction may be created, first come first served."""
        was_delayed = False
        async with self._line:
            while (delay := self._delay()) > 0:
                was_delayed = was_delayed or delay < math.inf
                self._tell(delay)
                self._answered.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if delay == math.inf else delay):
                        await self._answered.wait()
        self._granted += 1
        self._unanswered += 1
        self._last_create = _now()
        return Create(self, self._granted, self._last_create, was_delayed)

    @property
    def is_shut(self) -> bool:
        """Whether a create would be refused right now, as the last refusal has told."""
        return _now() < self._free_at

    @property
    def is_tight(self) -> bool:
        """Whether a create that is not answered soon may hold up others."""
        return self._unanswered >= self._most_unanswered - 1

    @property
    def _most_unanswered(self) -> int:
        return 1 if self._refusals else max(MOST_UNANSWERED, self._remaining)

    def _delay(self) -> float:
        """Seconds to wait; infinite when it depends on an answer."""
        now = _now()
        self._forget_before(now - MINUTE)
        if now < self._free_at:
            return self._free_at - now
        used = len(self._accepted) + self._unanswered
        if self._unanswered >= self._most_unanswered:
            return math.inf
        if used >= self.limit:
            return self._accepted[0] + MINUTE - now if self._accepted else math.inf
        # Half of the limit is for bursts, the other half is spent evenly: ops wait a little, and
        # travel together, instead of for the rest of a minute.
        evenly = self._last_create + MINUTE / self.limit - now
        return max(0.0, evenly) if used >= self.limit / 2 else 0.0

    def _forget_before(self, moment: float) -> None:
        while self._accepted and self._accepted[0] <= moment:
            self._accepted.popleft()

    def _tell(self, delay: float) -> None:
        if NOTICEABLE <= delay < math.inf and _now() > self._last_notice + MINUTE:
            self._last_notice = _now()
            log.warning(
                "Replicate accepts about %.0f creates a minute from this account: predictions wait "
                "(the next one for %.0f s), and what is asked for meanwhile joins them",
                self.limit,
                delay,
            )

    def accepted(self, remaining: int | None, number: int) -> None:
        """The create of that `number` was accepted, with so many left then, if the answer told it:
        others may have taken some of them since, where the answer was waited for."""
        now = _now()
        self._accepted.append(now)
        self._refusals = 0
        if remaining is not None:
            self._remaining = max(0, remaining - (self._granted - number))
        if self.limit < MOST_CREATES and now > self._last_refusal + MINUTE:
            # What was refused may have been for a passing reason, or another program's doing.
            self.limit, self._last_refusal = min(MOST_CREATES, 2 * self.limit), now

    def refused(self, failure: Failure, began: float) -> bool:
        """A create that began then was refused; whether it may be tried again."""
        now = _now()
        if began > self._last_refusal:
            self._refusals += 1
        self._last_refusal, self._remaining = now, 0
        jitter = random.random()  # noqa: S311 - spreads retries, guards nothing
        delay = delay_before_retry(failure, self._refusals, repeatable=False, jitter=jitter)
        if delay is None:
            return False
        self._free_at = max(self._free_at, now + delay)
        self._forget_before(now - MINUTE)
        possible = max(len(self._accepted), MINUTE / delay if delay > 0 else math.inf)
        self.limit = min(self.limit, possible)
        return True

    def answered(self) -> None:
        """A create is no longer on its way."""
        self._unanswered -= 1
        self._answered.set()


class Create:
    """The right to create one prediction; `end` it in any case."""

    def __init__(
        self, limiter: CreateLimiter, number: int, began: float, was_delayed: bool
    ) -> None:
        self._limiter = limiter
        self._number = number
        self._began = began
        self._is_open = True
        self.was_delayed = was_delayed
        """Whether it had to wait for the limit."""

    @property
    def is_void(self) -> bool:
        """Whether it would be refused: another one was, since this one was granted."""
        return self._limiter.is_shut

    def accepted(self, remaining: int | None) -> None:
        """The server has made the prediction; see `CreateLimiter.accepted`."""
        self._limiter.accepted(remaining, self._number)
        self.end()

    def refused(self, failure: Failure) -> bool:
        """By 429; whether it may be tried again, in its turn."""
        again = self._limiter.refused(failure, self._began)
        self.end()
        return again

    def end(self) -> None:
        """It was not used, or nobody knows. Idempotent."""
        if self._is_open:
            self._is_open = False
            self._limiter.answered()


def remaining_of(headers: Mapping[str, str]) -> int | None:
    """How many more creates were possible after this one, if an answer's headers tell it."""
    text = headers.get("ratelimit-remaining", "")
    return int(text) if text.isascii() and text.isdigit() else None


def _now() -> float:
    return asyncio.get_running_loop().time()
