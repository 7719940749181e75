"""What one stream's peer gets to see of it, and its one ending.

Upstream's client has two needs that the engine does not know. An error that arrives after the
fourth token of a GENERATE stream makes an LMQL 0.7.3 query wait for ever, and it knows neither
CANCEL nor "cancelled". A stream for such a peer therefore keeps its newest item back by one step
from the fourth on: when it fails, that item ends it with finish_reason "length", and LMQL asks
again for what is missing. Earlier failures, and those of SCORE, are told as errors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from lmtp_replicate.protocol.messages import (
    Dialect,
    Ending,
    ErrorItem,
    FinishReason,
    Generate,
    Score,
    StreamItem,
    TokenItem,
)

log = logging.getLogger(__name__)

SAFE_TOKENS = 3
"""So many tokens may be followed by an error without hanging upstream's client."""


class Relay:
    """Passes one stream's items on in its peer's dialect, which `dialect` tells at each step."""

    def __init__(self, op: Generate | Score, dialect: Callable[[], Dialect]) -> None:
        self._stream_id = op.stream_id
        self._held: TokenItem | None = None
        self._generates = isinstance(op, Generate)
        self._dialect = dialect
        self.tokens = 0
        """Number of tokens that came from the engine."""
        self.ended = False
        """Whether the one ending has been passed on; nothing follows it."""

    def forward(self, items: Sequence[StreamItem]) -> list[StreamItem]:
        """What the peer is sent for one step of the engine."""
        out: list[StreamItem] = []
        for item in items:
            if self.ended:
                log.error("stream %s: %r came after the ending", self._stream_id, item)
            else:
                out += self._forward(item)
        return out

    def fail(self, reason: str) -> list[StreamItem]:
        """The ending of a stream that cannot go on; nothing where it has ended already."""
        return [] if self.ended else self._end(ErrorItem(self._stream_id, reason))

    def cancel(self) -> list[StreamItem]:
        """The ending of a cancelled stream; nothing where it has ended already."""
        ending = Ending(self._stream_id, FinishReason.CANCELLED)
        return [] if self.ended else self._end(ending)

    def _forward(self, item: StreamItem) -> list[StreamItem]:
        return self._pass(item) if isinstance(item, TokenItem) else self._end(item)

    def _pass(self, item: TokenItem) -> list[StreamItem]:
        self.tokens += 1
        self.ended = item.finish_reason is not None
        out = self._release()
        upstream = self._dialect() is Dialect.UPSTREAM
        if upstream and self._generates and self.tokens > SAFE_TOKENS and not self.ended:
            self._held = item
            return [*out]
        return [*out, item]

    def _end(self, item: Ending | ErrorItem) -> list[StreamItem]:
        self.ended = True
        held = self._release()
        if self._dialect() is Dialect.EXTENDED:
            return [*held, item]
        if isinstance(item, ErrorItem):
            reason = item.error
        elif item.finish_reason is not FinishReason.CANCELLED and not self._generates:
            return [item]
        else:
            reason = f"the stream ended early ({item.finish_reason})"
        if not held:
            return [ErrorItem(self._stream_id, reason)]
        log.warning('stream %s: told the client "length" for: %s', self._stream_id, reason)
        return [replace(held[0], finish_reason=FinishReason.LENGTH)]

    def _release(self) -> list[TokenItem]:
        held, self._held = self._held, None
        return [] if held is None else [held]
