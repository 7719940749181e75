"""Server-sent events from bytes, without I/O.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation, with
one difference: `id` is the event's own, None where it named none, so that events can be told apart.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `data` is exact, lines joined by a newline."""

    type: str
    data: str
    id: str | None = None


class EventDecoder:
    """Feed it bytes, cut anywhere; an event comes out as soon as its empty line is in."""

    def __init__(self) -> None:
        self._text = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._line: list[str] = []
        self._after_cr = False
        self._at_start = True
        self._type = ""
        self._id: str | None = None
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes."""
        events = []
        for line in self._lines(self._text.decode(chunk)):
            event = self._take(line)
            if event is not None:
                events.append(event)
        return events

    def _lines(self, text: str) -> Iterator[str]:
        """Complete lines; they end in CR, LF or CRLF, also where a chunk parts CR from LF."""
        if text and self._at_start:
            self._at_start = False
            text = text.removeprefix("\ufeff")
        if text and self._after_cr:
            self._after_cr = False
            text = text.removeprefix("\n")
        if text.endswith("\r"):
            self._after_cr = True
        *complete, rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for line in complete:
            self._line.append(line)
            whole, self._line = "".join(self._line), []
            yield whole
        if rest:
            self._line.append(rest)

    def _take(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
            case "event":
                self._type = value
            case "id" if "\0" not in value:
                self._id = value
        return None  # comments have an empty name; `retry` and unknown fields are ignored

    def _dispatch(self) -> Event | None:
        event = Event(self._type or "message", "\n".join(self._data), self._id)
        has_data = bool(self._data)
        self._type, self._id, self._data = "", None, []
        return event if has_data else None
