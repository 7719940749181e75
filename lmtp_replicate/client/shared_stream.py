"""Ops in flight and who reads them: equal ones share an answer, and one that goes on from where
another has got to follows it.

Only where the answer is certain, which is: GENERATE at temperature 0, and SCORE. Samples of one
prompt are independent draws.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Final

from lmtp_replicate.client.batch import Call
from lmtp_replicate.client.channel import Delivery, Sink
from lmtp_replicate.client.follower import Follower
from lmtp_replicate.client.leaders import Lead, Leaders
from lmtp_replicate.client.path_memo import is_path
from lmtp_replicate.errors import LmtpReplicateError
from lmtp_replicate.protocol.messages import Generate, Op, Score, TokenItem, is_last

PART: Final = 8
"""So many tokens are worth waiting for to a reader that is content with a part."""
Listener = Callable[[Iterable[Delivery]], None]


class SharedStreams:
    """All of a hub. Hub's thread only. on_unread: told of each stream that nobody reads any more,
    by the id under which it was sent."""

    def __init__(self, on_unread: Callable[[int], None]) -> None:
        self._on_unread = on_unread
        self._to_join: dict[Hashable, SharedStream] = {}
        self._by_reader: dict[int, SharedStream] = {}
        self._sent: dict[int, SharedStream] = {}
        self._leaders = Leaders()

    def __len__(self) -> int:
        """How many entries are left of streams in flight."""
        places = (self._to_join, self._by_reader, self._sent, self._leaders)
        return sum(len(place) for place in places)

    def join(self, realm: Hashable, call: Call, go_on: Callable[[Call], None]) -> bool:
        """Have `call` answered by what is in flight, if possible. Ops of different realms have
        nothing in common. `go_on` gets what is left to ask when a stream that `call` follows leads
        no further."""
        stream_id = call.op.stream_id
        equal, lead = self._equal(realm, call.op), self._lead(realm, call)
        if equal is not None:
            self._by_reader[stream_id] = equal
            equal.join(stream_id, call.channel)
        elif lead is not None:
            leading = self._by_reader[stream_id] = self._sent[lead.stream_id]
            leading.follow(stream_id, Follower(call, lead, partial(self.leave, stream_id), go_on))
        return equal is not None or lead is not None

    def can_join(self, realm: Hashable, call: Call) -> bool:
        """Whether `join` would find a stream."""
        return self._equal(realm, call.op) is not None or self._lead(realm, call) is not None

    def _equal(self, realm: Hashable, op: Op) -> SharedStream | None:
        stream = self._to_join.get(_name(realm, op)) if is_certain(op) else None
        # A stream that all have left, of which we are only about to be told, is not sent any more.
        return None if stream is None or stream.is_abandoned else stream

    def _lead(self, realm: Hashable, call: Call) -> Lead | None:
        if not is_path(call.op):
            return None
        most = call.op.max_tokens
        lead = self._leaders.find(call.op, realm, min(most, PART) if call.may_end_early else most)
        return None if lead is None or self._sent[lead.stream_id].is_abandoned else lead

    def add(self, realm: Hashable | None, call: Call, listener: Listener | None) -> Call:
        """The call to send in the place of `call`, so that others may join; none may where there is
        no realm. `listener` gets the items before the readers."""
        op = call.op
        name = _name(realm, op) if realm is not None and is_certain(op) else None
        if name is None and listener is None:
            return call
        stream = SharedStream(op.stream_id, name, listener, self._moved, self._forget)
        self._sent[op.stream_id] = self._by_reader[op.stream_id] = stream
        if name is not None:
            self._to_join[name] = stream
        if realm is not None and is_path(op):
            self._leaders.add(op, realm)
        stream.join(op.stream_id, call.channel)
        return replace(call, channel=stream)

    def leave(self, stream_id: int) -> None:
        """A reader is gone."""
        stream = self._by_reader.pop(stream_id, None)
        if stream is None:
            self._on_unread(stream_id)
        elif stream.leave(stream_id):
            self._forget(stream)
            self._on_unread(stream.stream_id)

    def _moved(self, stream: SharedStream, items: Iterable[Delivery]) -> None:
        tokens = [item.token for item in items if isinstance(item, TokenItem)]
        self._leaders.move(stream.stream_id, tokens)

    def _forget(self, stream: SharedStream) -> None:
        if self._to_join.get(stream.name) is stream:
            del self._to_join[stream.name]
        self._sent.pop(stream.stream_id, None)
        self._leaders.remove(stream.stream_id)
        for reader in stream.readers:
            self._by_reader.pop(reader, None)


class SharedStream:
    """An op in flight: a sink for its items, which hands them to every reader. `name` is that under
    which others may join, None when nobody may."""

    def __init__(
        self,
        stream_id: int,
        name: Hashable,
        listener: Listener | None,
        on_move: Callable[[SharedStream, Iterable[Delivery]], None],
        on_over: Callable[[SharedStream], None],
    ) -> None:
        self.stream_id = stream_id
        self.name = name
        self.readers: dict[int, Sink] = {}
        self._listener = listener
        self._on_move = on_move
        self._on_over = on_over
        self._items: list[Delivery] = []

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody will read any more."""
        return all(reader.is_abandoned for reader in self.readers.values())

    def put(self, items: Iterable[Delivery]) -> None:
        """Hand over `items`, in order."""
        arrived = list(items)
        if self._listener is not None:
            self._listener(arrived)
        if self.name is not None:
            self._items += arrived
        if any(isinstance(item, LmtpReplicateError) or is_last(item) for item in arrived):
            self._on_over(self)
        else:
            self._on_move(self, arrived)
        for reader in list(self.readers.values()):  # one that follows may leave, or go on alone
            reader.put(_own(arrived))

    def join(self, stream_id: int, reader: Sink) -> None:
        """Let `reader` have all items, also those that came before it."""
        self.readers[stream_id] = reader
        if self._items:
            reader.put(_own(self._items))

    def follow(self, stream_id: int, reader: Sink) -> None:
        """Let `reader` have all items from now on."""
        self.readers[stream_id] = reader

    def leave(self, stream_id: int) -> bool:
        """The reader is gone; whether it was the last one."""
        del self.readers[stream_id]
        return not self.readers


def is_certain(op: Op) -> bool:
    """Whether asking twice gives the same answer twice."""
    return isinstance(op, Score) or (isinstance(op, Generate) and op.sampling.temperature == 0)


def _name(realm: Hashable, op: Op) -> Hashable:
    return realm, replace(op, stream_id=0)


def _own(items: Iterable[Delivery]) -> list[Delivery]:
    """The items for one of several readers: each raises an error of its own."""
    return [copy(item) if isinstance(item, LmtpReplicateError) else item for item in items]
