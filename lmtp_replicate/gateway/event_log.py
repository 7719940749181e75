"""A prediction's events as Replicate streams them: numbered, kept for replay, awaited by readers.

Wire form (docs: replicate.com/docs/topics/predictions/streaming): fields `event`, `id`, `data` in
this order; a chunk is split at "\\n" only, one `data:` line each, so that joining them with "\\n"
gives the exact chunk back.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any


class EventLog:
    """Events in order; `closed` once `done` is among them."""

    def __init__(self) -> None:
        self._events: list[bytes] = []
        self._places: dict[str, int] = {}
        self._second, self._number = 0, 0
        self._waiting: set[asyncio.Future[None]] = set()
        self.closed = False

    def output(self, chunk: Any) -> None:
        """A chunk; anything but text is shown as JSON."""
        self._append("output", chunk if isinstance(chunk, str) else json.dumps(chunk))

    def error(self, detail: str) -> None:
        """The reason of a failure; `done("error")` must follow."""
        self._append("error", json.dumps({"detail": detail}))

    def done(self, reason: str | None = None) -> None:
        """The last event; `reason` is None, "error" or "canceled"."""
        self.closed = True
        self._append("done", json.dumps({"reason": reason} if reason else {}))

    def clear(self) -> None:
        """Forget all data; a reader that comes now is told that there is nothing."""
        self._events.clear()
        self._places.clear()

    def __len__(self) -> int:
        return len(self._events)

    def since(self, place: int) -> Sequence[bytes]:
        """The encoded events from `place` (0: all) on."""
        return self._events[place:]

    def place_after(self, event_id: str | None) -> int:
        """Where a reader that has seen `event_id` goes on; 0 for None and unknown ids."""
        return self._places.get(event_id or "", -1) + 1

    async def wait(self, place: int, timeout: float) -> bool:
        """Wait for an event at `place`; False when none came in `timeout` seconds."""
        if len(self._events) > place:
            return True
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            await asyncio.wait({waiting}, timeout=timeout)
        finally:
            self._waiting.discard(waiting)
        return waiting.done()

    def _append(self, event: str, data: str) -> None:
        event_id = self._next_id()
        lines = "".join(f"data: {line}\n" for line in data.split("\n"))
        encoded = f"event: {event}\nid: {event_id}\n{lines}\n".encode("utf-8", "surrogatepass")
        self._places[event_id] = len(self._events)
        self._events.append(encoded)
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    def _next_id(self) -> str:
        """`<unix time>:<number in that second>`, as Replicate's; never repeated, never smaller."""
        second = max(int(time.time()), self._second)
        self._number = self._number + 1 if second == self._second else 0
        self._second = second
        return f"{second}:{self._number}"
