"""Items on their way from the engine's thread to one peer, bounded in size."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence

from lmtp_replicate.protocol.messages import ErrorItem, Info, Item, TokenItem

FRAME_BYTES = 2**20
"""Aim for one frame: LMQL's client refuses frames of more than 4 MiB."""


def encoded_size(item: Item) -> int:
    """About how many bytes `item` takes in a frame, without encoding it."""
    match item:
        case TokenItem(top_logprobs=best):
            return 128 + 32 * len(best)
        case ErrorItem(error=error):
            return 64 + len(error)
        case Info():
            return 4096
        case _:
            return 128


def frames(items: Sequence[Item]) -> Iterator[list[Item]]:
    """`items` in runs that fit into a frame each."""
    run: list[Item] = []
    size = 0
    for item in items:
        size += encoded_size(item)
        if run and size > FRAME_BYTES:
            yield run
            run, size = [], encoded_size(item)
        run.append(item)
    if run:
        yield run


class Outbox:
    """Filled from any thread, emptied on the event loop it was made on.

    When more than `limit` bytes wait, the peer does not keep up: what waits is dropped, nothing
    more is taken, and `on_overflow` is called once, on the event loop.
    """

    def __init__(self, limit: int, on_overflow: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = limit
        self._on_overflow = on_overflow
        self._lock = threading.Lock()
        self._items: list[Item] = []
        self._bytes = 0
        self._overflowed = False
        self._finished = False
        self._filled = asyncio.Event()

    def put(self, items: Sequence[Item]) -> None:
        """Add items. Never blocks; the event loop must not have been closed."""
        with self._lock:
            if self._overflowed:
                return
            first = not self._items
            self._items += items
            self._bytes += sum(map(encoded_size, items))
            self._overflowed = self._bytes > self._limit
            if self._overflowed:
                self._items.clear()
        if self._overflowed:
            self._loop.call_soon_threadsafe(self._on_overflow)
        elif first:
            self._loop.call_soon_threadsafe(self._filled.set)

    def finish(self) -> None:
        """Take no more items than those waiting. On the event loop only."""
        self._finished = True
        self._filled.set()

    async def take(self) -> list[Item]:
        """Wait for items and take all there are: usually those of one step of the engine. Empty
        means that nothing more will come."""
        await self._filled.wait()
        with self._lock:
            items, self._items, self._bytes = self._items, [], 0
            if not self._finished:
                self._filled.clear()
        return items
