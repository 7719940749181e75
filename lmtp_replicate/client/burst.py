"""The ops that one event loop asks for at about the same time, so that they travel together.

LMQL starts the ops of a step (samples, beams, the values of a distribution, parallel queries) in
one iteration of its loop, or in a few that follow each other without waiting for anything.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Final

from lmtp_replicate.client.batch import Call
from lmtp_replicate.client.hub import Hub
from lmtp_replicate.client.peer import Peer

MOST_ITERATIONS: Final = 16
"""After that many iterations a burst leaves, also when each has brought a new op."""


class Burst:
    """Leaves after the first iteration of the loop that adds nothing to it."""

    def __init__(self, hub: Hub, loop: asyncio.AbstractEventLoop) -> None:
        self._hub = hub
        self._loop = loop
        self._calls: dict[Peer, list[Call]] = {}
        self._size = 0
        self.is_gone = False
        loop.call_soon(self._look, 0, MOST_ITERATIONS)

    def takes(self, hub: Hub, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether an op of `loop` for `hub` may still join."""
        return not self.is_gone and hub is self._hub and loop is self._loop

    def add(self, peer: Peer, call: Call) -> None:
        """Let `call` travel to `peer` with the others."""
        self._calls.setdefault(peer, []).append(call)
        self._size += 1

    def _look(self, size: int, iterations: int) -> None:
        if self._size > size and iterations > 0:
            self._loop.call_soon(self._look, self._size, iterations - 1)
            return
        self.is_gone = True
        for peer, calls in self._calls.items():
            self._hub.post(peer, calls)


class _Thread(threading.local):
    burst: Burst | None = None


_thread = _Thread()


def send(hub: Hub, peer: Peer, call: Call) -> None:
    """Send `call` to `peer`, together with what the running loop asks for right now."""
    loop = asyncio.get_running_loop()
    burst = _thread.burst
    if burst is None or not burst.takes(hub, loop):
        burst = _thread.burst = Burst(hub, loop)
    burst.add(peer, call)
