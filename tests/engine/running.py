"""Driving an engine from a test: submit ops, wait for their ends, act when an item arrives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lmtp_replicate.engine.interface import Engine, Ticket
from lmtp_replicate.engine.loading import LoadedModel
from lmtp_replicate.engine.settings import EngineSettings
from lmtp_replicate.engine.torch_engine import TorchEngine
from lmtp_replicate.protocol.messages import ErrorItem, Generate, Score, StreamItem, is_last

PATIENCE = 60
"""Seconds after which a test fails instead of hanging."""


class Answer:
    """The items of one stream. `after[n]` is called, on the engine's thread, when the stream has
    n items; a second ending or an item after the end fails the test."""

    def __init__(self, op: Generate | Score) -> None:
        self.op = op
        self.items: list[StreamItem] = []
        self.after: dict[int, Callable[[], object]] = {}
        self.ticket: Ticket | None = None
        self.misbehaviour: str | None = None
        self._ended = threading.Event()

    def __call__(self, items: Sequence[StreamItem]) -> None:
        for item in items:
            if self._ended.is_set():
                self.misbehaviour = f"{item} came after the end"
            self.items.append(item)
            if is_last(item):
                self._ended.set()
            action = self.after.pop(len(self.items), None)
            if action is not None:
                action()

    def wait(self) -> list[StreamItem]:
        assert self._ended.wait(PATIENCE), f"{self.op} has not ended: {self.items}"
        assert self.misbehaviour is None
        return self.items

    @property
    def tokens(self) -> list[int]:
        return [item.token for item in self.items if hasattr(item, "token")]

    @property
    def error(self) -> str:
        last = self.wait()[-1]
        assert isinstance(last, ErrorItem), self.items
        return last.error


def submit(engine: Engine, op: Generate | Score) -> Answer:
    answer = Answer(op)
    answer.ticket = engine.submit(op, answer)
    return answer


def answers(engine: Engine, ops: Sequence[Generate | Score]) -> list[Answer]:
    """The ended answers of `ops`, all submitted at once."""
    pending = [submit(engine, op) for op in ops]
    for answer in pending:
        answer.wait()
    return pending


@contextmanager
def running(loaded: LoadedModel, **settings: Any) -> Iterator[TorchEngine]:
    engine = TorchEngine(loaded, EngineSettings(**settings))
    try:
        yield engine
    finally:
        engine.close()
