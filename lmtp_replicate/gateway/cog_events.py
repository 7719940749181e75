"""What a Cog runtime says while a prediction runs (coglet's own server-sent events).

coglet's events carry JSON in `data`, have no ids, and may hold raw U+2028 and the like, so lines
end at "\\n" only. They are not Replicate's events: those are made in `event_log`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lmtp_replicate.errors import TransportError


@dataclass(frozen=True, slots=True)
class Started:
    """The model's code has the prediction."""


@dataclass(frozen=True, slots=True)
class Output:
    """One yielded chunk (any JSON value) and its place in the output, from 0."""

    index: int
    chunk: Any


@dataclass(frozen=True, slots=True)
class Log:
    """Text that the prediction printed."""

    text: str


@dataclass(frozen=True, slots=True)
class Metric:
    """A recorded metric; `mode` is replace, increment or append."""

    name: str
    value: Any
    mode: str


@dataclass(frozen=True, slots=True)
class Completed:
    """The end: `status` is succeeded, failed or canceled."""

    status: str
    error: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lagged:
    """coglet dropped events because we read too slowly; nothing follows."""

    reason: str


CogEvent = Started | Output | Log | Metric | Completed | Lagged


class EventReader:
    """Bytes in, events out; borders of the pieces do not matter."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, piece: bytes) -> Iterator[CogEvent]:
        """Events completed by `piece`. TransportError for what coglet cannot have sent."""
        searched = max(len(self._buffer) - 1, 0)  # an event may be many pieces: look at each once
        self._buffer += piece
        last = self._buffer.rfind(b"\n\n", searched)
        if last < 0:
            return
        blocks = bytes(self._buffer[:last]).split(b"\n\n")
        del self._buffer[: last + 2]
        for block in blocks:
            event = _event(block)
            if event is not None:
                yield event


def _event(block: bytes) -> CogEvent | None:
    name, data = "", b""
    for line in block.split(b"\n"):
        label, _, value = line.partition(b": ")
        if label == b"event":
            name = value.decode()
        elif label == b"data":
            data = value
    if not name:
        return None  # a keep-alive comment
    try:
        return _decoded(name, json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TransportError(f"the Cog runtime sent an unreadable {name!r} event") from error


def _decoded(name: str, body: Mapping[str, Any]) -> CogEvent | None:
    match name:
        case "start":
            return Started()
        case "output":
            return Output(int(body["index"]), body["chunk"])
        case "log":
            return Log(str(body["data"]))
        case "metric":
            return Metric(str(body["name"]), body["value"], str(body["mode"]))
        case "completed":
            error = body.get("error")
            return Completed(
                status=str(body["status"]),
                error=None if error is None else str(error),
                metrics=body.get("metrics") or {},
            )
        case "error":
            return Lagged(str(body["error"]))
        case _:
            return None
