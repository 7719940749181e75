"""What need not be sent: ops whose answer is known, or on its way to another. Every op passes here
once, before it costs anything."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from functools import partial

from lmtp_replicate.client.batch import Call
from lmtp_replicate.client.ledger import Ledger
from lmtp_replicate.client.path_memo import rest_of
from lmtp_replicate.client.peer import Peer
from lmtp_replicate.client.shared_stream import SharedStreams
from lmtp_replicate.protocol.messages import FinishReason, Generate, Score, TokenItem


class Sparing:
    """All of a hub. Hub's thread only. on_unread: see `SharedStreams`. send: have calls answered by
    the peer after all."""

    def __init__(
        self,
        ledger: Ledger,
        on_unread: Callable[[int], None],
        send: Callable[[Peer, Sequence[Call]], None],
    ) -> None:
        self._ledger = ledger
        self._send = send
        self.streams = SharedStreams(on_unread)

    def unanswered(self, peer: Peer, calls: Iterable[Call]) -> list[Call]:
        """What must be sent of `calls`; the others will be answered without."""
        left = (self._unanswered(peer, call) for call in calls)
        return [call for call in left if call is not None]

    def _unanswered(self, peer: Peer, call: Call) -> Call | None:
        known = self._recall(peer, call) if peer.savings.memory else []
        if known and known[-1].finish_reason is not None:
            self._ledger.recalled(call.op)
            call.channel.put(known)
            return None
        if known and isinstance(call.op, Generate):
            call.channel.put(known)
            call = replace(call, op=rest_of(call.op, [item.token for item in known]))
        realm = _realm(peer)
        if realm is not None and self.streams.join(realm, call, partial(self._go_on, peer)):
            self._ledger.joined(call.op)
            return None
        listener = None
        if peer.savings.memory and isinstance(call.op, Generate | Score):
            listener = peer.memory.listener(call.op)
        return self.streams.add(realm, call, listener)

    def _recall(self, peer: Peer, call: Call) -> list[TokenItem]:
        """The first items that answer `call`; all that it will get where the last one has a finish
        reason."""
        if isinstance(call.op, Score):
            return peer.memory.recall(call.op) or []
        if not isinstance(call.op, Generate):
            return []
        items = peer.memory.recall_path(call.op, is_part_enough=call.may_end_early)
        if items and items[-1].finish_reason is None and call.may_end_early:
            rest = rest_of(call.op, [item.token for item in items])
            if not self._can_join(peer, replace(call, op=rest)):
                items[-1] = replace(items[-1], finish_reason=FinishReason.LENGTH)
        return items

    def _can_join(self, peer: Peer, call: Call) -> bool:
        realm = _realm(peer)
        return realm is not None and self.streams.can_join(realm, call)

    def _go_on(self, peer: Peer, call: Call) -> None:
        """The stream that `call` has followed leads no further."""
        if not call.channel.is_abandoned:
            self._send(peer, self.unanswered(peer, [call]))


def _realm(peer: Peer) -> Hashable | None:
    """Streams of one can answer each other's ops; None: they must not."""
    return (peer, peer.memory.epoch) if peer.savings.join else None
