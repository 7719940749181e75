"""The one place per process where all sharing lives: connections, look-ups, predictions.

LMQL makes a new client and often a new event loop per query, never closes them and cancels badly.
So all network traffic runs in a thread of our own, with its own loop; the loops of callers only
hand ops over and read items.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import logging
import os
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import aiohttp

from lmtp_replicate.client.batch import Batch, Call
from lmtp_replicate.client.ledger import Ledger
from lmtp_replicate.client.memory import Memory
from lmtp_replicate.client.settings import Savings
from lmtp_replicate.client.shared_stream import SharedStreams
from lmtp_replicate.client.stats import Tally
from lmtp_replicate.errors import TransportError
from lmtp_replicate.protocol.limits import LIMITS
from lmtp_replicate.protocol.messages import Generate, Score

log = logging.getLogger(__name__)
FAREWELL_SECONDS: Final = 5.0
"""How long the end of the process may wait for the cancelling of predictions."""


class Peer(Protocol):
    """One endpoint, seen through one account."""

    @property
    def label(self) -> str:
        """What messages and traces call it."""

    @property
    def tally(self) -> Tally:
        """Where its costs are counted."""

    @property
    def info(self) -> Mapping[str, Any] | None:
        """The answer to MODEL_INFO, once known."""

    @property
    def savings(self) -> Savings:
        """Which means of saving predictions may be used."""

    @property
    def memory(self) -> Memory:
        """What its model has said."""

    async def run(self, batch: Batch) -> None:
        """Have the batch answered; lasts until nothing of it is left on the server's side. Every
        stream gets its end, whatever happens."""

    async def close(self) -> None:
        """Give up the connections. No batch is running."""


class Hub:
    """See the module. `post` and `leave` may be called from any thread."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._batches: dict[int, Batch] = {}
        self._streams = SharedStreams()
        self._ledger = Ledger()
        self._tasks: set[asyncio.Task[None]] = set()
        self._peers: dict[Hashable, Peer] = {}
        self._session: aiohttp.ClientSession | None = None
        self._disowned = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="lmtp-replicate-hub", daemon=True)
        self._thread.start()

    def next_id(self) -> int:
        """A stream id that no other stream of this process has."""
        return next(self._ids)

    @property
    def running(self) -> int:
        """Number of batches that something is left of on a server's side."""
        return len(self._tasks)

    def peer(self, address: Hashable, make: Callable[[Hub], Peer]) -> Peer:
        """The one peer of this hub at `address`, made by `make` if need be."""
        # Two threads may both make one; the first one kept is used by both.
        return self._peers.get(address) or self._peers.setdefault(address, make(self))

    def session(self) -> aiohttp.ClientSession:
        """The connections that all peers share. On the hub's thread only."""
        if self._session is None:
            # Idle connections are dropped before servers drop them: a POST on a connection that is
            # just being closed would be lost, and must not be sent again.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=15, ttl_dns_cache=300)
            self._session = aiohttp.ClientSession(
                connector=connector,
                headers={"User-Agent": "lmtp-replicate"},
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    def post(self, peer: Peer, calls: Sequence[Call]) -> None:
        """Have `calls` answered by `peer`, in one batch."""
        self._loop.call_soon_threadsafe(self._start, peer, calls)

    def leave(self, stream_id: int) -> None:
        """The stream's reader is gone."""
        if not self._disowned:
            self._loop.call_soon_threadsafe(self._leave, stream_id)

    def disown(self) -> None:
        """This process is a fork and the hub is its parent's: never touch its loop again."""
        self._disowned = True

    def _start(self, peer: Peer, calls: Sequence[Call]) -> None:
        wanted = [call for call in calls if not call.channel.is_abandoned]
        wanted = self._not_yet_known(peer, self._ledger.asked(peer.label, peer.tally, wanted))
        for start in range(0, len(wanted), LIMITS.ops_per_batch):
            together = wanted[start : start + LIMITS.ops_per_batch]
            entry = self._ledger.open_batch([call.op for call in together], peer.tally)
            batch = Batch(together, entry)
            self._batches.update((op.stream_id, batch) for op in batch.ops)
            task = self._loop.create_task(self._run(peer, batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _not_yet_known(self, peer: Peer, calls: Iterable[Call]) -> list[Call]:
        """What must be sent. Every op passes here once, before it costs anything: one whose answer
        is known is answered, one that equals another in flight joins it."""
        unknown = []
        for call in calls:
            if self._recall(peer, call):
                continue
            listener = None
            if peer.savings.memory and isinstance(call.op, Generate | Score):
                listener = peer.memory.listener(call.op)
            sent = self._streams.enter(peer, call, may_join=peer.savings.join, listener=listener)
            if sent is None:
                self._ledger.joined(call.op)
            else:
                unknown.append(sent)
        return unknown

    def _recall(self, peer: Peer, call: Call) -> bool:
        if not (peer.savings.memory and isinstance(call.op, Score)):
            return False
        items = peer.memory.recall(call.op)
        if items is None:
            return False
        self._ledger.recalled(call.op)
        call.channel.put(items)
        return True

    async def _run(self, peer: Peer, batch: Batch) -> None:
        try:
            await peer.run(batch)
        except Exception as error:  # a bug of ours must not leave a query hanging
            log.exception("the batch failed")
            batch.fail(TransportError(f"internal error of the client: {error!r}"))
        finally:
            for op in batch.ops:
                self._batches.pop(op.stream_id, None)
            batch.entry.close()

    def _leave(self, stream_id: int) -> None:
        self._ledger.left(stream_id)
        unread = self._streams.leave(stream_id)
        batch = None if unread is None else self._batches.get(unread)
        if unread is not None and batch is not None:
            batch.leave(unread)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def close(self) -> None:
        """Cancel what runs, tell its readers, and end the thread."""
        if self._loop.is_closed():
            return
        done = asyncio.run_coroutine_threadsafe(self._farewell(), self._loop)
        try:
            done.result(FAREWELL_SECONDS + 1)
        except TimeoutError:
            log.warning("predictions may still be running: cancelling them took too long")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=1)

    async def _farewell(self) -> None:
        for batch in set(self._batches.values()):
            batch.drop(TransportError("the client was closed while the stream was open"))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=FAREWELL_SECONDS)
        for peer in self._peers.values():
            await peer.close()
        if self._session is not None:
            await self._session.close()
        self._ledger.close()


class _Process:
    """This process's hub. A forked child makes its own; the parent's is kept there untouched, so
    that nothing of it is finalised."""

    def __init__(self) -> None:
        self.inherited: list[Hub] = []
        self.forget()

    def forget(self) -> None:
        self.lock = threading.Lock()
        self.hub: Hub | None = None

    def after_fork(self) -> None:
        if self.hub is not None:
            self.hub.disown()
            self.inherited.append(self.hub)
        self.forget()


_process = _Process()
os.register_at_fork(after_in_child=_process.after_fork)


def process_hub() -> Hub:
    """This process's hub, made on first use."""
    with _process.lock:
        if _process.hub is None:
            _process.hub = Hub()
        return _process.hub


@atexit.register
def close_process_hub() -> None:
    """Cancel all predictions that still run. The next use makes a new hub."""
    with _process.lock:
        hub, _process.hub = _process.hub, None
    if hub is not None:
        hub.close()
