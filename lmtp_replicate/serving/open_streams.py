"""The streams of one peer that have not ended, bounded in number and in what they hold."""

from __future__ import annotations

from dataclasses import dataclass, field

from lmtp_replicate.engine.interface import Ticket
from lmtp_replicate.protocol.limits import LIMITS
from lmtp_replicate.protocol.messages import Generate, Score
from lmtp_replicate.serving.relay import Relay

BITSET_BYTES_PER_ID = 32
"""So many bytes of a mask's bitset take about the memory of one id in a prompt."""


@dataclass(eq=False)
class OpenStream:
    """A stream that has not ended."""

    op: Generate | Score
    relay: Relay
    ticket: Ticket | None = None
    """None until the engine has taken the op."""
    unwanted: bool = False
    ids: int = field(init=False)
    """About how many token ids the op keeps in memory."""

    def __post_init__(self) -> None:
        self.ids = _held_ids(self.op)


class OpenStreams:
    """Streams by id. Not synchronised: see `Session`."""

    def __init__(self) -> None:
        self._streams: dict[int, OpenStream] = {}
        self._ids = 0

    def __len__(self) -> int:
        return len(self._streams)

    def get(self, stream_id: int) -> OpenStream | None:
        """The open stream of that id."""
        return self._streams.get(stream_id)

    def why_not(self, stream: OpenStream) -> str | None:
        """Why `stream` may not be opened now; None if it may."""
        if stream.op.stream_id in self._streams:
            return "the id of a stream that has not ended is taken"
        if len(self._streams) >= LIMITS.open_streams:
            return f"{LIMITS.open_streams} streams are open already; wait until one ends"
        if self._ids + stream.ids > LIMITS.open_ids:
            return (
                f"with the streams that are open, prompts and biases would hold more than "
                f"{LIMITS.open_ids} ids; wait until one ends"
            )
        return None

    def add(self, stream: OpenStream) -> None:
        """Add a stream that `why_not` has nothing against."""
        self._streams[stream.op.stream_id] = stream
        self._ids += stream.ids

    def remove(self, stream: OpenStream) -> None:
        """Take one stream out."""
        del self._streams[stream.op.stream_id]
        self._ids -= stream.ids

    def take_all(self) -> list[OpenStream]:
        """Take all streams out."""
        streams, self._streams, self._ids = list(self._streams.values()), {}, 0
        return streams


def _held_ids(op: Generate | Score) -> int:
    if isinstance(op, Score):
        return len(op.prompt) + len(op.scored)
    if op.mask is None:
        return len(op.prompt)
    bitsets = len(op.mask.allowed or b"") + len(op.mask.forbidden)
    return len(op.prompt) + len(op.mask.added) + bitsets // BITSET_BYTES_PER_ID
