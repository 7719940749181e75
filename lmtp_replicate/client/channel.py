"""One stream's way from the hub's thread to the event loop that reads it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from copy import copy
from typing import Protocol

from lmtp_replicate.errors import LmtpReplicateError
from lmtp_replicate.protocol.messages import Info, StreamItem

Delivery = StreamItem | Info | LmtpReplicateError


class Sink(Protocol):
    """Where a stream's items go. Hub's thread only."""

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody will read any more."""

    def put(self, items: Iterable[Delivery]) -> None:
        """Hand over `items`, in order."""


def fail_each(sinks: Iterable[Sink], error: LmtpReplicateError) -> None:
    """End the streams of `sinks` with `error`."""
    for sink in sinks:
        sink.put([copy(error)])  # each reader raises its own, with its own traceback


class Channel:
    """`put` belongs to the hub's thread, `get` to the reader's loop, the rest to any thread.

    No lock: a reader may be abandoned by the garbage collector, which can run inside any critical
    section of the same thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_abandon: Callable[[], None]) -> None:
        self._loop = loop
        self._on_abandon = on_abandon
        self._items: deque[Delivery] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.is_abandoned = False
        """Whether nobody will read any more."""

    def put(self, items: Iterable[Delivery]) -> None:
        """Hand over `items`, in order."""
        if self.is_abandoned:
            return
        self._items.extend(items)
        # `get` sets the waiter before it looks at the items a last time, we look at the waiter
        # after the items are there: one of both sees the other.
        waiter = self._waiter
        if waiter is not None:
            try:
                self._loop.call_soon_threadsafe(_wake, waiter)
            except RuntimeError:  # the reader's loop was closed
                self.abandon()

    async def get(self) -> Delivery:
        """The next item."""
        while not self._items:
            waiter = self._waiter = self._loop.create_future()
            try:
                if not self._items:
                    await waiter
            finally:
                self._waiter = None
        return self._items.popleft()

    def fail(self, error: LmtpReplicateError) -> None:
        """Give up the stream; its reader meets `error` after what has arrived. Any thread."""
        self.put([error])
        self.abandon()

    def abandon(self) -> None:
        """Nobody will read any more. Idempotent; tells the hub at once."""
        if not self.is_abandoned:
            self.is_abandoned = True
            with contextlib.suppress(RuntimeError):  # the hub is closed: nothing is left to tell
                self._on_abandon()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
