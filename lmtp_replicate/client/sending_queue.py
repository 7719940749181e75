"""From calls to batches: what is asked of one peer at about the same time travels together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from lmtp_replicate.client.batch import Batch, Call
from lmtp_replicate.client.channel import fail_each
from lmtp_replicate.client.entries import BatchEntry
from lmtp_replicate.client.peer import Peer, Throttled, Turn
from lmtp_replicate.client.waiting import Waiting
from lmtp_replicate.errors import LmtpReplicateError, TransportError

log = logging.getLogger(__name__)


class SendingQueue:
    """One peer's. Hub's thread only.

    An op for an idle peer leaves at once, with what other loops ask for in the same moment. While
    others are in flight it waits a little for company; and whatever holds it up (the look-up of
    the model, the limit on creates), what comes meanwhile joins it.
    """

    def __init__(self, peer: Peer, open_entry: Callable[[Sequence[Call]], BatchEntry]) -> None:
        self._peer = peer
        self._open_entry = open_entry
        self._waiting = Waiting()
        self._waits_since = 0.0
        self._sender: asyncio.Task[None] | None = None
        self._batches: dict[int, Batch] = {}
        self._running: set[asyncio.Task[None]] = set()

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """What is still to do: one for each batch that something is left of on the server's side,
        and one when calls wait."""
        return self._running | ({self._sender} if self._sender is not None else set())

    def add(self, calls: Sequence[Call]) -> None:
        """One burst."""
        if calls:
            self._waiting.add(calls)
            self._begin()

    def _begin(self) -> None:
        if self._sender is None:
            self._waits_since = self._now()
            self._sender = asyncio.ensure_future(self._send_all())
            self._sender.add_done_callback(self._end)

    def _end(self, sender: asyncio.Task[None]) -> None:
        self._sender = None
        if not sender.cancelled() and (error := sender.exception()) is not None:
            log.error("the sending queue failed", exc_info=error)
            self._fail(TransportError(f"internal error of the client: {error!r}"))
        if self._waiting.is_wanted():  # came in the last moment
            self._begin()

    def leave(self, stream_id: int) -> None:
        """The stream's reader is gone."""
        batch = self._batches.get(stream_id)
        if batch is not None:
            batch.leave(stream_id)
        elif self._sender is not None and not self._waiting.is_wanted():
            self._sender.cancel()

    def drop(self, error: LmtpReplicateError) -> None:
        """End every stream with `error`, while the server may still be at work."""
        for batch in set(self._batches.values()):
            batch.drop(error)
        self._fail(error)
        if self._sender is not None:
            self._sender.cancel()

    def _fail(self, error: LmtpReplicateError) -> None:
        """End every stream that waits, and those that come to wait because one was ended: they
        have followed it."""
        while calls := self._waiting.take_all():
            fail_each((call.channel for call in calls), error)

    async def _send_all(self) -> None:
        while self._waiting.is_wanted():
            try:
                turn = await self._peer.turn()
            except LmtpReplicateError as error:
                self._fail(error)
                return
            calls: list[Call] = []
            try:
                await self._wait_for_company(turn.window)
                calls = self._waiting.take(turn.size, one_burst=not self._peer.savings.coalesce)
            finally:
                if not calls:
                    turn.give_up()
            if calls:
                self._send(turn, calls)

    async def _wait_for_company(self, window: float) -> None:
        is_idle = all(batch.over.is_set() for batch in self._batches.values())
        left = self._waits_since + window - self._now()
        if left > 0 and not is_idle and self._peer.savings.coalesce:
            await asyncio.sleep(left)

    def _send(self, turn: Turn, calls: Sequence[Call]) -> None:
        batch = Batch(calls, self._open_entry(calls))
        self._batches.update((op.stream_id, batch) for op in batch.ops)
        task = asyncio.ensure_future(self._run(turn, batch))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, turn: Turn, batch: Batch) -> None:
        try:
            await turn.run(batch)
        except Throttled:
            self._waiting.put_back(batch.take_back())
            self._begin()
        except Exception as error:  # a bug of ours must not leave a query hanging
            log.exception("the batch failed")
            batch.fail(TransportError(f"internal error of the client: {error!r}"))
        finally:
            for op in batch.ops:
                self._batches.pop(op.stream_id, None)
            batch.entry.close()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
