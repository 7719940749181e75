"""Replicate's output, put together again on the client's side."""

from __future__ import annotations

from lmtp_replicate.errors import ProtocolError
from lmtp_replicate.protocol.item_codec import decode_items
from lmtp_replicate.protocol.limits import LIMITS
from lmtp_replicate.protocol.messages import ErrorItem, Item


class LineDecoder:
    """Chunks of text in, items out.

    Replicate promises no chunk borders, so lines are cut at "\\n" and nowhere else. Never raises: a
    line that cannot be read is an `ErrorItem` without a stream, since any stream may have lost a
    token with it, and the other lines are kept.
    """

    def __init__(self) -> None:
        self._open: list[str] = []
        self._length = 0

    def feed(self, text: str) -> list[Item]:
        """The items of all lines that `text` completes."""
        *complete, rest = text.split("\n")
        items: list[Item] = []
        for part in complete:
            self._extend(part)
            items += self._take()
        self._extend(rest)
        return items

    def finish(self) -> list[Item]:
        """The items of a last line that lacks its newline."""
        return self._take()

    def _extend(self, part: str) -> None:
        self._length += len(part)
        if self._length > LIMITS.message_bytes:
            self._open.clear()  # the length alone is remembered: the line is refused at its end
        elif part:
            self._open.append(part)

    def _take(self) -> list[Item]:
        line, length = "".join(self._open).strip("\r"), self._length
        self._open, self._length = [], 0
        try:
            if length > LIMITS.message_bytes:
                raise ProtocolError(
                    f"{length} characters, but at most {LIMITS.message_bytes} are read",
                    field="line",
                )
            return decode_items(line) if line else []
        except ProtocolError as error:
            return [ErrorItem(None, str(error))]
