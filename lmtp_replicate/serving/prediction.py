"""The items of one prediction, as they come."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from queue import Empty, SimpleQueue

from lmtp_replicate.engine.interface import Engine
from lmtp_replicate.protocol.messages import Dialect, ErrorItem, Item, Op, Usage, is_last
from lmtp_replicate.serving.session import Session


class Prediction:
    """A batch of ops that is answered on the thread that asks for the answers."""

    def __init__(self, engine: Engine, dialect: Dialect) -> None:
        self._arrived: SimpleQueue[Sequence[Item]] = SimpleQueue()
        self._session = Session(engine, self._arrived.put, dialect=dialect)
        self._cancelled = False
        self._began = time.monotonic()

    def answers(self, ops: Sequence[Op | ErrorItem]) -> Generator[list[Item], None, None]:
        """Lists of items, each at once when there is something, until every op has its ending.
        Closing the generator takes the streams out of the engine."""
        try:
            self._session.receive(ops)
            if self._cancelled:  # while the ops were being received
                self._session.cancel()
            missing = len(ops)
            while missing:
                items = list(self._next_items())
                missing -= sum(map(is_last, items))
                yield items
        finally:
            self._session.close()

    def cancel(self) -> None:
        """End all streams at once; `answers` yields their endings and ends. Any thread."""
        self._cancelled = True
        self._session.cancel()

    def usage(self) -> Usage:
        """What the prediction has used so far, and for how long it has run."""
        milliseconds = round((time.monotonic() - self._began) * 1000)
        return Usage({**self._session.usage().usage, "milliseconds": milliseconds})

    def _next_items(self) -> Iterator[Item]:
        """Wait for the next items and take all that has arrived."""
        yield from self._arrived.get()
        while True:
            try:
                yield from self._arrived.get_nowait()
            except Empty:
                return
