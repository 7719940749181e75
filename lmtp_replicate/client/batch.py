"""The streams that travel together, in one prediction or one burst of websocket frames."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmtp_replicate.client.channel import Sink, fail_each
from lmtp_replicate.client.entries import BatchEntry
from lmtp_replicate.client.query import Query
from lmtp_replicate.errors import LmtpReplicateError, StreamError
from lmtp_replicate.protocol.messages import ErrorItem, Info, Item, Op, Usage, is_last

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """An op under its hub-wide id, where its items go, and whose it is. may_end_early: the reader
    is content with a part of the answer, and asks again where it needs more."""

    op: Op
    channel: Sink
    query: Query
    may_end_early: bool = False


class Batch:
    """Sends each item to its stream, and knows when nobody waits for more. Hub's thread only."""

    def __init__(self, calls: Sequence[Call], entry: BatchEntry) -> None:
        self.entry = entry
        """Where its costs are counted."""
        self._calls = calls
        self.ops: Sequence[Op] = [call.op for call in calls]
        self._open = {call.op.stream_id: call.channel for call in calls}
        self.over = asyncio.Event()
        """Set when no stream is left to wait for."""
        self.unwanted = asyncio.Event()
        """Set together with `over` when a stream was left before its end, so that the server is
        still at work for nobody."""
        self._was_left = False
        self.on_leave: Callable[[int], None] | None = None
        """Told of each stream that is left before its end."""
        self.on_info: Callable[[Mapping[str, Any]], None] | None = None
        """Told of each answer to MODEL_INFO, whoever asked."""

    def deliver(self, items: Iterable[Item]) -> None:
        """Hand each item to its stream. A stream ends at its own last item; what a server sends
        after that (upstream's repeats it) is dropped."""
        items = list(items)
        self.entry.received(items)
        arrived: dict[int, list[Item]] = {}
        for item in items:
            match item:
                case Usage():
                    log.debug("usage: %s", item.usage)
                case ErrorItem(stream_id=None):
                    self.fail(StreamError(item.error))
                case Info():
                    if self.on_info is not None:
                        self.on_info(item.model_info)
                    arrived.setdefault(item.stream_id, []).append(item)
                case _:
                    assert item.stream_id is not None
                    arrived.setdefault(item.stream_id, []).append(item)
        for stream_id, own in arrived.items():
            self._hand_over(stream_id, own)

    def _hand_over(self, stream_id: int, items: Sequence[Item]) -> None:
        channel = self._open.get(stream_id)
        if channel is None:
            return
        wanted = []
        for item in items:
            assert not isinstance(item, Usage)
            wanted.append(item)
            if is_last(item):
                del self._open[stream_id]
                break
        channel.put(wanted)
        self._notice_the_end()

    def fail(self, error: LmtpReplicateError) -> None:
        """End every open stream with `error`."""
        channels, self._open = list(self._open.values()), {}
        fail_each(channels, error)
        self._notice_the_end()

    def take_back(self) -> list[Call]:
        """The calls that wait for an answer; they do not any more, here."""
        waiting = [call for call in self._calls if call.op.stream_id in self._open]
        self._open = {}
        self._notice_the_end()
        return waiting

    def drop(self, error: LmtpReplicateError) -> None:
        """`fail`, while the server may still be at work."""
        self._was_left = bool(self._open)
        self.fail(error)

    def leave(self, stream_id: int) -> None:
        """The stream's reader is gone."""
        if self._open.pop(stream_id, None) is not None:
            self._was_left = True
            if self.on_leave is not None:
                self.on_leave(stream_id)
            self._notice_the_end()

    def _notice_the_end(self) -> None:
        if not self._open:
            self.over.set()
            if self._was_left:
                self.unwanted.set()
