"""The books of a hub: every op and batch passes here, is counted and, if asked for, traced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from weakref import WeakValueDictionary

from lmtp_replicate.client.batch import Call
from lmtp_replicate.client.entries import BatchEntry, OpEntry
from lmtp_replicate.client.stats import Stats, Tally
from lmtp_replicate.client.trace import Trace
from lmtp_replicate.protocol.messages import Generate, Op, Score


class Ledger:
    """All of a hub. Hub's thread only."""

    def __init__(self) -> None:
        self._trace = Trace.from_environment()
        self._entries: WeakValueDictionary[int, OpEntry] = WeakValueDictionary()
        """Held by whoever has still to hand something to them, or to send their ops."""

    def asked(self, label: str, tally: Tally, calls: Sequence[Call]) -> list[Call]:
        """The same calls, to the endpoint called `label`, whose answers are counted."""
        entries: list[OpEntry] = []
        counted = []
        for call in calls:
            if isinstance(call.op, Generate | Score):
                entry = OpEntry(call.op, call.query, tally, self._trace, call.channel)
                self._entries[call.op.stream_id] = entry
                entries.append(entry)
                call = replace(call, channel=entry)
            counted.append(call)
        if self._trace is not None and entries:
            self._trace.asked(label, [(entry.query, entry.op) for entry in entries])
        return counted

    def recalled(self, op: Op) -> None:
        """`op` is about to be answered from memory."""
        self._spared(op, "memory", Stats(from_memory=1))

    def joined(self, op: Op) -> None:
        """`op` shares the answer of an equal one."""
        self._spared(op, "joined", Stats(joined=1))

    def _spared(self, op: Op, source: str, change: Stats) -> None:
        entry = self._entries.get(op.stream_id)
        if entry is not None:
            entry.answered_without_asking(source, change)

    def left(self, op: int) -> None:
        """The reader of `op` is gone."""
        entry = self._entries.get(op)
        if entry is not None:
            entry.end("left")

    def open_batch(self, ops: Sequence[Op], tally: Tally) -> BatchEntry:
        """The account of `ops`, which travel together from now on."""
        known = (self._entries.get(op.stream_id) for op in ops)
        entries = [entry for entry in known if entry is not None]
        return BatchEntry(ops, entries, tally, self._trace)

    def close(self) -> None:
        """Nothing more will happen."""
        if self._trace is not None:
            self._trace.close()
