"""Ops in flight and who reads them: equal ones share an answer.

Only where the answer is certain, which is: GENERATE at temperature 0, and SCORE. Samples of one
prompt are independent draws.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from copy import copy
from dataclasses import replace

from lmtp_replicate.client.batch import Call
from lmtp_replicate.client.channel import Delivery, Sink
from lmtp_replicate.errors import LmtpReplicateError
from lmtp_replicate.protocol.messages import Generate, Op, Score, is_last

Listener = Callable[[Iterable[Delivery]], None]


class SharedStreams:
    """All of a hub. Hub's thread only."""

    def __init__(self) -> None:
        self._to_join: dict[Hashable, SharedStream] = {}
        self._by_reader: dict[int, SharedStream] = {}

    def __len__(self) -> int:
        return len(self._by_reader)

    def enter(
        self, peer: object, call: Call, *, may_join: bool, listener: Listener | None
    ) -> Call | None:
        """The call to send to `peer` in the place of `call`, or None when an equal one is already
        on its way there and will answer it. `listener` gets the items before the readers."""
        name = (peer, replace(call.op, stream_id=0)) if may_join and is_certain(call.op) else None
        if name is None and listener is None:
            return call
        stream = self._to_join.get(name)
        is_new = stream is None
        if stream is None:
            stream = SharedStream(call.op.stream_id, name, listener, self._forget)
            if name is not None:
                self._to_join[name] = stream
        self._by_reader[call.op.stream_id] = stream
        stream.join(call.op.stream_id, call.channel)
        return replace(call, channel=stream) if is_new else None

    def leave(self, stream_id: int) -> int | None:
        """A reader is gone: the id of the stream that was sent for it, if nobody reads that now."""
        stream = self._by_reader.pop(stream_id, None)
        if stream is None:
            return stream_id
        if not stream.leave(stream_id):
            return None
        self._forget(stream)
        return stream.stream_id

    def _forget(self, stream: SharedStream) -> None:
        if self._to_join.get(stream.name) is stream:
            del self._to_join[stream.name]
        for reader in stream.readers:
            self._by_reader.pop(reader, None)


class SharedStream:
    """An op in flight: a sink for its items, which gives every reader all of them, whenever the
    reader came. `name` is that under which others may join, None when nobody may."""

    def __init__(
        self,
        stream_id: int,
        name: Hashable,
        listener: Listener | None,
        on_over: Callable[[SharedStream], None],
    ) -> None:
        self.stream_id = stream_id
        self.name = name
        self.readers: dict[int, Sink] = {}
        self._listener = listener
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
        for reader in self.readers.values():
            reader.put(_own(arrived))

    def join(self, stream_id: int, reader: Sink) -> None:
        """Let `reader` have all items, also those that came before it."""
        self.readers[stream_id] = reader
        if self._items:
            reader.put(_own(self._items))

    def leave(self, stream_id: int) -> bool:
        """The reader is gone; whether it was the last one."""
        del self.readers[stream_id]
        return not self.readers


def is_certain(op: Op) -> bool:
    """Whether asking twice gives the same answer twice."""
    return isinstance(op, Score) or (isinstance(op, Generate) and op.sampling.temperature == 0)


def _own(items: Iterable[Delivery]) -> list[Delivery]:
    """The items for one of several readers: each raises an error of its own."""
    return [copy(item) if isinstance(item, LmtpReplicateError) else item for item in items]
