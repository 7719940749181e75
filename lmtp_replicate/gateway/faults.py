"""Trouble on demand: what clients must survive on Replicate and cannot provoke there."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from dataclasses import dataclass, field

from lmtp_replicate.gateway.problems import throttled


@dataclass
class Faults:
    """Everything is off by default, and may be changed while the gateway runs.

    create_seconds: a create's answer comes that much later. stream_seconds: likewise the answer to
    a stream's request. creates_per_minute: further creates get 429. minute: its seconds, fewer
    where a test cannot wait. end_stream_after: every connection to a stream ends, without `done`,
    after that many events. idle_seconds: a silent stream ends after that long with Replicate's
    `:408:` comment, and gets no pings before. replay_all: `Last-Event-ID` is ignored, so that a
    reconnecting client sees events twice.
    """

    create_seconds: float = 0.0
    stream_seconds: float = 0.0
    creates_per_minute: int | None = None
    minute: float = 60.0
    end_stream_after: int | None = None
    idle_seconds: float | None = None
    replay_all: bool = False
    _creates: deque[float] = field(default_factory=deque, repr=False)

    async def before_create(self) -> None:
        """Be late, or refuse with ProblemError 429."""
        self._limit()
        if self.create_seconds:
            await asyncio.sleep(self.create_seconds)

    async def before_stream(self) -> None:
        """Be late."""
        if self.stream_seconds:
            await asyncio.sleep(self.stream_seconds)

    def limit_headers(self) -> dict[str, str]:
        """What Replicate tells with every answer to a create: how many more are possible now, and
        after how many seconds there are more."""
        if self.creates_per_minute is None:
            return {"ratelimit-remaining": "599", "ratelimit-reset": "1"}  # as recorded there
        left = max(0, self.creates_per_minute - len(self._creates))
        return _limit_headers(left, self._reset())

    def _limit(self) -> None:
        if self.creates_per_minute is None:
            return
        now = time.monotonic()
        while self._creates and self._creates[0] <= now - self.minute:
            self._creates.popleft()
        if len(self._creates) >= self.creates_per_minute:
            wait = self._reset()
            raise throttled(
                "Request was throttled. Your rate limit for creating predictions is "
                f"{self.creates_per_minute} requests per minute. Your rate limit resets in "
                f"~{wait}s.",
                retry_after=wait,
                headers=_limit_headers(0, wait),
            )
        self._creates.append(now)

    def _reset(self) -> int:
        """Seconds until one more create is possible than now."""
        if not self._creates:
            return 1
        return math.ceil(self._creates[0] + self.minute - time.monotonic())


def _limit_headers(left: int, reset: int) -> dict[str, str]:
    return {"ratelimit-remaining": str(left), "ratelimit-reset": str(reset)}
