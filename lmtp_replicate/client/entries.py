"""The entries of the ledger: one op's and one batch's account."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmtp_replicate.client.channel import Delivery, Sink
from lmtp_replicate.client.query import Query
from lmtp_replicate.client.stats import Stats, Tally
from lmtp_replicate.client.trace import Trace
from lmtp_replicate.errors import LmtpReplicateError
from lmtp_replicate.protocol.messages import (
    Ending,
    ErrorItem,
    Generate,
    Item,
    Op,
    Score,
    TokenItem,
    Usage,
)


class OpEntry:
    """Stands before an op's sink and counts what passes."""

    def __init__(
        self, op: Generate | Score, query: Query, tally: Tally, trace: Trace | None, sink: Sink
    ) -> None:
        self.op = op
        self.query = query
        self._tally = tally
        self._trace = trace
        self._sink = sink
        self._is_open = True
        self._is_spared = False
        query.begin()
        self.count(Stats(ops=1))

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody will read any more."""
        return self._sink.is_abandoned

    def put(self, items: Iterable[Delivery]) -> None:
        """Hand over `items`, in order."""
        arrived = list(items)
        tokens = [item for item in arrived if isinstance(item, TokenItem)]
        if self._is_open and tokens:
            self._tally.tokens_used += len(tokens)
            self.query.tally.tokens_used += len(tokens)
            if self._trace is not None:
                self._trace.arrived(self.op.stream_id, tokens)
        self._sink.put(arrived)
        for item in arrived:
            how = _ending(item)
            if how is not None:
                self.end(how)

    def answered_without_asking(self, source: str, change: Stats) -> None:
        """The server is not asked: the answer, or a part of it, comes from `source`, which `change`
        counts. Only the first time tells: who has followed one stream may follow another."""
        if self._is_spared:
            return
        self._is_spared = True
        self.count(change)
        if self._trace is not None:
            self._trace.answered_without_asking(self.op.stream_id, source)

    def end(self, how: str) -> None:
        """Nothing more is handed over. Idempotent."""
        if self._is_open:
            self._is_open = False
            if self._trace is not None:
                self._trace.ended(self.op.stream_id, how)
            self.query.finish()

    def count(self, change: Stats) -> None:
        """For the endpoint and for the query."""
        self._tally.add(change)
        self.query.tally.add(change)


class BatchEntry:
    """What the ops that travel together cost. A query that shares a batch has all of its costs in
    its own count, so that the counts of several queries may add up to more than the endpoint's."""

    def __init__(
        self, ops: Sequence[Op], entries: Sequence[OpEntry], tally: Tally, trace: Trace | None
    ) -> None:
        self._ops = ops
        self._entries = entries
        self._trace = trace
        self._queries = list(dict.fromkeys(entry.query for entry in entries))
        self._tallies = [tally, *(query.tally for query in self._queries)]
        self._prediction: int | None = None
        self._is_prediction = False
        self._status = "unknown"
        self._seconds: float | None = None
        for query in self._queries:
            query.begin()

    def count(self, change: Stats) -> None:
        """For the endpoint and for all queries of the batch."""
        for tally in self._tallies:
            tally.add(change)

    def sent(self) -> None:
        """The server has the ops."""
        self.count(Stats(tokens_requested=sum(map(_requested, self._ops))))

    def created(self, size: int) -> None:
        """As `sent`, as a prediction, by a request of `size` bytes."""
        self.sent()
        self.count(Stats(predictions=1))
        self._is_prediction = True
        if self._trace is not None:
            self._prediction = self._trace.created([op.stream_id for op in self._ops], size)

    def saw(self, prediction: Mapping[str, Any]) -> None:
        """An answer of Replicate has described the prediction."""
        self._status = str(prediction.get("status") or self._status)
        metrics = prediction.get("metrics")
        seconds = metrics.get("predict_time") if isinstance(metrics, Mapping) else None
        if isinstance(seconds, int | float):
            self._seconds = float(seconds)

    def received(self, items: Iterable[Item]) -> None:
        """The server has sent `items`."""
        tokens = 0
        for item in items:
            if isinstance(item, TokenItem):
                tokens += 1
            elif isinstance(item, Usage) and self._seconds is None:
                milliseconds = item.usage.get("milliseconds")
                if isinstance(milliseconds, int):
                    self._seconds = milliseconds / 1000
        for tally in self._tallies:
            tally.tokens_received += tokens

    def close(self) -> None:
        """Nothing of the batch is left on the server's side."""
        if self._is_prediction and self._seconds is not None:
            self.count(Stats(gpu_seconds=self._seconds, predictions_timed=1))
        if self._trace is not None and self._prediction is not None:
            self._trace.finished(self._prediction, self._status, self._seconds)
        for query in self._queries:
            query.finish()


def _requested(op: Op) -> int:
    match op:
        case Generate():
            return op.max_tokens
        case Score():
            return len(op.scored)
        case _:
            return 0


def _ending(item: Delivery) -> str | None:
    """How `item` ends its stream, if it does. An error's text may quote the prompt."""
    match item:
        case LmtpReplicateError() | ErrorItem():
            return type(item).__name__
        case TokenItem(finish_reason=reason) if reason is not None:
            return reason.value
        case Ending(finish_reason=reason):
            return reason.value
        case _:
            return None
