"""A greedy model of few tokens, and an endpoint of it whose server does one thing at a time, when
it is told to: no network, no threads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lmtp_replicate.client.batch import Call
from lmtp_replicate.client.channel import Delivery, Sink
from lmtp_replicate.client.ledger import Ledger
from lmtp_replicate.client.memory import Memory
from lmtp_replicate.client.query import Query
from lmtp_replicate.client.settings import Savings
from lmtp_replicate.client.sparing import Sparing
from lmtp_replicate.errors import LmtpReplicateError, StreamError, TransportError
from lmtp_replicate.protocol.messages import FinishReason, Generate, TokenItem

EOS, ROOM = 5, 12
"""Tokens are 0 to 5, and a context has room for so many."""
BOS = 6
"""An empty prompt stands for it."""
Fact = tuple[int, float, dict[int, float]]


def says(version: int, context: Sequence[int], best: int) -> Fact:
    """The model: token, log probability and so many of the likeliest ids after `context`."""
    seed = hash((version, tuple(context)))
    ranked = sorted(range(EOS + 1), key=lambda token: hash((seed, token // 2, token)))
    told = {token: -(rank + (seed % 97) / 100) for rank, token in enumerate(ranked)}
    return ranked[0], told[ranked[0]], dict(list(told.items())[:best])


def item_for(op: Generate, version: int, produced: Sequence[int]) -> TokenItem:
    context = [*(op.prompt or (BOS,)), *produced]
    token, logprob, best = says(version, context, op.top_logprobs)
    reason = None
    if token == EOS:
        reason = FinishReason.STOP
    elif len(produced) + 1 == op.max_tokens or len(context) + 1 == ROOM:
        reason = FinishReason.LENGTH
    return TokenItem(op.stream_id, token, logprob, best, reason)


def answer(op: Generate, version: int = 0) -> list[TokenItem]:
    """All of it."""
    items: list[TokenItem] = []
    while not items or items[-1].finish_reason is None:
        items.append(item_for(op, version, [item.token for item in items]))
    return items


def longest_path() -> list[int]:
    """A text that fills the context and does not end."""
    for first in range(1000, 2000):
        text = [first, *(item.token for item in answer(Generate(0, (first,), ROOM)))]
        if len(text) == ROOM and text[-1] != EOS:
            return text
    raise AssertionError


TEXT = longest_path()
"""It begins with the prompt `START`, and `PATH` is what follows."""
START, PATH = tuple(TEXT[:1]), TEXT[1:9]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(eq=False)
class Reader:
    """Of one op. since: the version that ran when it was asked for."""

    op: Generate
    may_end_early: bool
    since: int
    items: list[Delivery] = field(default_factory=list)
    is_abandoned: bool = False

    def put(self, items: Iterable[Delivery]) -> None:
        self.items += items

    @property
    def is_over(self) -> bool:
        return bool(self.items) and not (
            isinstance(self.items[-1], TokenItem) and self.items[-1].finish_reason is None
        )


@dataclass
class Running:
    """A stream on the server."""

    op: Generate
    sink: Sink
    version: int
    produced: list[int] = field(default_factory=list)


class Place:
    """An endpoint whose server does one thing at a time, when it is told to."""

    label = "org/model"

    def __init__(self, savings: Savings) -> None:
        self.savings = savings
        self.clock = Clock()
        self.memory = Memory(lambda: {"dtype": "bfloat16"}, now=self.clock)
        self.version = 0
        self.running: dict[int, Running] = {}
        self.readers: list[Reader] = []
        self.sent: list[Generate] = []
        self.sparing = Sparing(Ledger(), self._end, lambda _, calls: self._send(calls))
        self.see(0)

    def see(self, version: int) -> None:
        self.version = version
        self.memory.see_version(str(version), is_chosen=False)

    def ask(self, op: Generate, *, may_end_early: bool = False) -> Reader:
        reader = Reader(op, may_end_early, self.version)
        self.readers.append(reader)
        call = Call(op, reader, Query(), may_end_early)
        self._send(self.sparing.unanswered(self, [call]))  # type: ignore[arg-type]
        return reader

    def _send(self, calls: Sequence[Call]) -> None:
        for call in calls:
            assert isinstance(call.op, Generate)
            self.sent.append(call.op)
            self.running[call.op.stream_id] = Running(call.op, call.channel, self.version)

    def step(self, stream: Running, count: int) -> None:
        """The stream brings so many tokens, all at once; or is refused, where none can follow."""
        if len(stream.op.prompt) >= ROOM:
            self._end(stream.op.stream_id)
            stream.sink.put([StreamError("the prompt fills the context")])
            return
        items: list[Delivery] = []
        for _ in range(count):
            item = item_for(stream.op, stream.version, stream.produced)
            stream.produced.append(item.token)
            items.append(item)
            if item.finish_reason is not None:
                self._end(stream.op.stream_id)
                break
        stream.sink.put(items)

    def fail(self, stream: Running) -> None:
        self._end(stream.op.stream_id)
        stream.sink.put([TransportError("lost")])

    def leave(self, reader: Reader) -> None:
        reader.is_abandoned = True
        self.sparing.streams.leave(reader.op.stream_id)

    def _end(self, stream_id: int) -> None:
        self.running.pop(stream_id, None)

    def finish(self) -> None:
        while self.running:
            self.step(next(iter(self.running.values())), 2)


def check(place: Place, reader: Reader) -> None:
    """All that it got is what a version that has run since says there, and its end is right."""
    context, count = list(reader.op.prompt or (BOS,)), 0
    for item in reader.items:
        if not isinstance(item, TokenItem):
            break
        versions = range(reader.since, place.version + 1)
        best = reader.op.top_logprobs
        told = (item.token, item.logprob, dict(item.top_logprobs))
        assert told in [says(version, context, best) for version in versions]
        context.append(item.token)
        count += 1
        if item.token == EOS:
            assert item.finish_reason is FinishReason.STOP
        elif count == reader.op.max_tokens or len(context) == ROOM:
            assert item.finish_reason is FinishReason.LENGTH
        elif not reader.may_end_early:
            assert item.finish_reason is None
    assert not any(isinstance(item, StreamError) for item in reader.items) or len(context) >= ROOM
    if count:
        assert not isinstance(reader.items[-1], StreamError)
    if not reader.is_abandoned:
        assert reader.is_over
        assert count or isinstance(reader.items[-1], LmtpReplicateError)
