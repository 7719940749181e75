"""A peer's queue at its end: whoever waits is told, also who comes to wait because of that."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from lmtp_replicate.client.batch import Batch, Call
from lmtp_replicate.client.channel import Delivery
from lmtp_replicate.client.ledger import Ledger
from lmtp_replicate.client.memory import Memory
from lmtp_replicate.client.peer import Turn
from lmtp_replicate.client.query import Query
from lmtp_replicate.client.sending_queue import SendingQueue
from lmtp_replicate.client.settings import Savings
from lmtp_replicate.client.sparing import Sparing
from lmtp_replicate.client.stats import Tally
from lmtp_replicate.errors import TransportError
from lmtp_replicate.protocol.batch_size import BatchSize
from lmtp_replicate.protocol.messages import Generate, TokenItem


class Reader:
    is_abandoned = False

    def __init__(self) -> None:
        self.items: list[Delivery] = []

    def put(self, items: Iterable[Delivery]) -> None:
        self.items += items


class SilentPeer:
    """Takes every batch, and says nothing by itself."""

    label = "org/model"

    def __init__(self) -> None:
        self.savings = Savings()
        self.memory = Memory(lambda: None)
        self.memory.see_version("1", is_chosen=True)
        self.tally = Tally()
        self.batches: list[Batch] = []

    async def turn(self) -> Turn:
        return Turn(BatchSize(names_masks=True), 0.0, self._run, give_up=lambda: None)

    async def _run(self, batch: Batch) -> None:
        self.batches.append(batch)
        await batch.over.wait()

    async def close(self) -> None: ...


class Asking:
    """What a hub does with one peer."""

    def __init__(self) -> None:
        self.peer = SilentPeer()
        self.ledger = Ledger()
        self.queue = SendingQueue(
            self.peer,  # type: ignore[arg-type]
            lambda calls: self.ledger.open_batch([call.op for call in calls], self.peer.tally),
        )
        self.sparing = Sparing(
            self.ledger, self.queue.leave, lambda _, calls: self.queue.add(calls)
        )

    def ask(self, op: Generate) -> Reader:
        reader = Reader()
        calls = self.ledger.asked("org/model", self.peer.tally, [Call(op, reader, Query())])
        self.queue.add(self.sparing.unanswered(self.peer, calls))  # type: ignore[arg-type]
        return reader

    async def three(self) -> list[Reader]:
        """A stream that has begun, and two that follow it, the second a token further on."""
        leading = self.ask(Generate(1, (1,), 50))
        while not self.peer.batches:  # noqa: ASYNC110 - the queue's own tasks, no clock
            await asyncio.sleep(0)
        self.peer.batches[0].deliver([TokenItem(1, 2, -1.0)])
        following = [self.ask(Generate(2, (1, 2), 40)), self.ask(Generate(3, (1, 2, 3), 20))]
        return [leading, *following]


async def test_dropping_all_leaves_nobody_waiting_and_sends_nothing_more() -> None:
    asking = Asking()
    readers = await asking.three()
    asking.queue.drop(TransportError("the client was closed"))
    while asking.queue.tasks:
        await asyncio.wait(asking.queue.tasks)
    assert [type(reader.items[-1]) for reader in readers] == [TransportError] * 3
    assert len(asking.peer.batches) == 1
    assert len(asking.sparing.streams) == 0


async def test_who_follows_one_stream_after_the_other_is_counted_once() -> None:
    asking = Asking()
    await asking.three()
    asking.peer.batches[0].fail(TransportError("lost"))
    assert asking.peer.tally.stats.joined == 2
    asking.queue.drop(TransportError("the client was closed"))
