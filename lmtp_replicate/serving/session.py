"""One peer's conversation with the engine: ops in, items out, no I/O.

A session serves one websocket connection or one prediction. It gives every stream exactly one
ending, in the dialect the peer understands, and keeps what is wrong with one op away from the
others.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from lmtp_replicate.engine.interface import Engine
from lmtp_replicate.protocol.messages import (
    Cancel,
    Dialect,
    ErrorItem,
    Generate,
    Info,
    Item,
    ModelInfo,
    Op,
    Score,
    StreamItem,
    Usage,
)
from lmtp_replicate.serving.model_info import model_info
from lmtp_replicate.serving.open_streams import OpenStream, OpenStreams
from lmtp_replicate.serving.relay import Relay
from lmtp_replicate.serving.vocabulary import trim

log = logging.getLogger(__name__)


@dataclass
class _Counts:
    ops: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    scored_tokens: int = 0
    refused_ops: int = 0


class Session:
    """See the module. Any thread may call any method.

    `deliver` gets the items for the peer in the order to send them, on the engine's thread or on
    that of the caller of `receive` and `cancel`. It must not block, not raise, and not call the
    session: the session's lock is held, so that the order holds over all threads.
    """

    def __init__(
        self,
        engine: Engine,
        deliver: Callable[[Sequence[Item]], None],
        *,
        dialect: Dialect = Dialect.UPSTREAM,
    ) -> None:
        self._engine = engine
        self._vocab_size = engine.info().vocab_size
        self._deliver = deliver
        self._lock = threading.Lock()
        self._streams = OpenStreams()
        self._counts = _Counts()
        self._closed = False
        self._told_of_ignored_ids = False
        self.dialect = dialect
        """May be raised to EXTENDED at any time, when the peer shows that it speaks it."""

    @property
    def open_streams(self) -> int:
        """Number of streams that have not ended."""
        return len(self._streams)

    def usage(self) -> Usage:
        """What the session has used so far, in numbers of ops and tokens."""
        with self._lock:
            return Usage(dict(vars(self._counts)))

    def receive(self, ops: Iterable[Op | ErrorItem]) -> None:
        """Act on `ops` in order. What could not be read arrives here as `ErrorItem` and is passed
        on to the peer."""
        for op in ops:
            match op:
                case ErrorItem(stream_id, error):
                    self._refuse(stream_id, error)
                case ModelInfo(stream_id):
                    self._send([Info(stream_id, model_info(self._engine.info()))])
                case Cancel(stream_id):
                    self._cancel_stream(stream_id)
                case Generate() | Score():
                    self._open_stream(op)

    def cancel(self) -> None:
        """End every open stream at once and tell the peer, who gets no more of them."""
        with self._lock:
            streams = self._streams.take_all()
            items = [item for stream in streams for item in stream.relay.cancel()]
            if items and not self._closed:
                self._deliver(items)
        self._drop(streams)

    def close(self) -> None:
        """Cancel what is open and deliver nothing more. Idempotent."""
        with self._lock:
            self._closed = True
            streams = self._streams.take_all()
        self._drop(streams)

    def _open_stream(self, op: Generate | Score) -> None:
        stream = OpenStream(op, Relay(op, lambda: self.dialect))
        with self._lock:
            if self._closed:
                return
            refusal = self._streams.why_not(stream)
            if refusal is None:
                self._streams.add(stream)
                self._counts.ops += 1
                self._counts.prompt_tokens += len(op.prompt)
        if refusal is not None:
            self._refuse(op.stream_id, refusal)
            return
        # The engine may call the sink within submit: no lock may be held here.
        ticket = self._engine.submit(self._within_vocabulary(op), self._sink(stream))
        with self._lock:
            stream.ticket = ticket
            unwanted = stream.unwanted
        if unwanted:
            ticket.cancel()

    def _sink(self, stream: OpenStream) -> Callable[[Sequence[StreamItem]], None]:
        def sink(items: Sequence[StreamItem]) -> None:
            with self._lock:
                if self._streams.get(stream.op.stream_id) is not stream:
                    return  # it was cancelled, and its peer knows
                before = stream.relay.tokens
                out = stream.relay.forward(items)
                self._count(stream.op, stream.relay.tokens - before)
                if stream.relay.ended:
                    self._streams.remove(stream)
                if out:
                    self._deliver(out)

        return sink

    def _count(self, op: Generate | Score, tokens: int) -> None:
        if isinstance(op, Score):
            self._counts.scored_tokens += tokens
        else:
            self._counts.output_tokens += tokens

    def _within_vocabulary(self, op: Generate | Score) -> Generate | Score:
        if isinstance(op, Score) or op.mask is None:
            return op
        trimmed = trim(op.mask, self._vocab_size)
        if trimmed.ignored and not self._told_of_ignored_ids:
            self._told_of_ignored_ids = True
            log.warning(
                "stream %s: logit_bias names %s ids outside the model's vocabulary; they are "
                "ignored (said once per connection). Is the tokenizer the model's own?",
                op.stream_id,
                trimmed.ignored,
            )
        return replace(op, mask=trimmed.mask)

    def _cancel_stream(self, stream_id: int) -> None:
        with self._lock:
            stream = self._streams.get(stream_id)
        if stream is not None:
            self._drop([stream])

    def _drop(self, streams: Iterable[OpenStream]) -> None:
        """Take streams out of the engine, also those that it is just being given."""
        for stream in streams:
            with self._lock:
                stream.unwanted = True
                ticket = stream.ticket
            if ticket is not None:
                ticket.cancel()

    def _refuse(self, stream_id: int | None, error: str) -> None:
        """Tell the peer that an op was refused. Where its id is that of a live stream the error
        names no stream, since the peer would take it for the end of the live one."""
        with self._lock:
            self._counts.refused_ops += 1
            live = stream_id is not None and self._streams.get(stream_id) is not None
        if live:
            error = f"stream {stream_id}: a second op was refused, the first goes on: {error}"
        self._send([ErrorItem(None if live else stream_id, error)])

    def _send(self, items: Sequence[Item]) -> None:
        with self._lock:
            if not self._closed:
                self._deliver(items)
