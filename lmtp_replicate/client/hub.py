"""The one place per process where all sharing lives: connections, look-ups, predictions.

LMQL makes a new client and often a new event loop per query, never closes them and cancels badly.
So all network traffic runs in a thread of our own, with its own loop; the loops of callers only
hand ops over and read items.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import logging
import os
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Final

import aiohttp

from lmtp_replicate.client.account import Account
from lmtp_replicate.client.batch import Call
from lmtp_replicate.client.boot_notice import BootNotice
from lmtp_replicate.client.channel import fail_each
from lmtp_replicate.client.entries import BatchEntry
from lmtp_replicate.client.ledger import Ledger
from lmtp_replicate.client.limiter import CreateLimiter
from lmtp_replicate.client.peer import Peer
from lmtp_replicate.client.sending_queue import SendingQueue
from lmtp_replicate.client.sparing import Sparing
from lmtp_replicate.errors import TransportError

log = logging.getLogger(__name__)
CLOSED: Final = "the client was closed while the stream was open"
"""What readers meet whose streams end because nobody is left to bring them."""
FAREWELL_SECONDS: Final = 5.0
"""How long the end of the process may wait for the cancelling of predictions."""


class Hub:
    """See the module. `post` and `leave` may be called from any thread."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._queues: dict[Peer, SendingQueue] = {}
        self.boots = BootNotice()
        self._limiters: dict[Account, CreateLimiter] = {}
        self._ledger = Ledger()
        self._sparing = Sparing(self._ledger, self._end, self._send)
        self._peers: dict[Hashable, Peer] = {}
        self._session: aiohttp.ClientSession | None = None
        self._disowned = False
        self._is_over = False
        self._gate = threading.Lock()
        """Held while the loop is given calls, and while it ends."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="lmtp-replicate-hub", daemon=True)
        self._thread.start()

    def next_id(self) -> int:
        """A stream id that no other stream of this process has."""
        return next(self._ids)

    @property
    def running(self) -> int:
        """Number of batches that something is left of on a server's side, and of queues that hold
        calls back."""
        return sum(len(queue.tasks) for queue in list(self._queues.values()))

    def peer(self, address: Hashable, make: Callable[[Hub], Peer]) -> Peer:
        """The one peer of this hub at `address`, made by `make` if need be."""
        # Two threads may both make one; the first one kept is used by both.
        return self._peers.get(address) or self._peers.setdefault(address, make(self))

    def limiter(self, account: Account) -> CreateLimiter:
        """What all peers of `account` wait for before they create predictions."""
        return self._limiters.setdefault(account, CreateLimiter())

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
        """Have `calls` answered by `peer`, together."""
        if not self._disowned:
            with self._gate:
                if not self._loop.is_closed():
                    self._loop.call_soon_threadsafe(self._start, peer, calls)
                    return
        _refuse(calls)

    def leave(self, stream_id: int) -> None:
        """The stream's reader is gone. No lock: see `Channel`."""
        if not self._disowned:
            with contextlib.suppress(RuntimeError):  # closed, after all streams have ended
                self._loop.call_soon_threadsafe(self._leave, stream_id)

    def disown(self) -> None:
        """This process is a fork and the hub is its parent's: never touch its loop again."""
        self._disowned = True

    def _start(self, peer: Peer, calls: Sequence[Call]) -> None:
        if self._is_over:
            _refuse(calls)
            return
        wanted = [call for call in calls if not call.channel.is_abandoned]
        wanted = self._ledger.asked(peer.label, peer.tally, wanted)
        self._send(peer, self._sparing.unanswered(peer, wanted))

    def _send(self, peer: Peer, calls: Sequence[Call]) -> None:
        self._queue_of(peer).add(calls)

    def _queue_of(self, peer: Peer) -> SendingQueue:
        def open_entry(calls: Sequence[Call]) -> BatchEntry:
            return self._ledger.open_batch([call.op for call in calls], peer.tally)

        if peer not in self._queues:
            self._queues[peer] = SendingQueue(peer, open_entry)
        return self._queues[peer]

    def _leave(self, stream_id: int) -> None:
        self._ledger.left(stream_id)
        self._sparing.streams.leave(stream_id)

    def _end(self, stream_id: int) -> None:
        """Nobody reads the stream any more."""
        for queue in self._queues.values():
            queue.leave(stream_id)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        with self._gate:  # what it was told before is still done
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
        self._is_over = True
        tasks = set[asyncio.Task[None]]()
        for queue in self._queues.values():
            queue.drop(TransportError(CLOSED))
            tasks |= queue.tasks
        if tasks:
            await asyncio.wait(tasks, timeout=FAREWELL_SECONDS)
        for peer in self._peers.values():
            await peer.close()
        if self._session is not None:
            await self._session.close()
        self._ledger.close()


def _refuse(calls: Sequence[Call]) -> None:
    """They were asked of a hub that is being closed; or was, so that its thread hands nothing over
    any more."""
    fail_each((call.channel for call in calls), TransportError(CLOSED))


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
