"""One prediction: its life from `starting` to an end, and how the API shows it."""

from __future__ import annotations

import asyncio
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from lmtp_replicate.gateway.cog_events import CogEvent, Completed, Log, Metric, Output, Started
from lmtp_replicate.gateway.event_log import EventLog

_ID_ALPHABET = string.ascii_lowercase + string.digits


class Status(StrEnum):
    """Replicate's words. The last four are ends; ABORTED is a deadline hit before the start."""

    STARTING = "starting"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    ABORTED = "aborted"


def _random_id(length: int) -> str:
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(length))


@dataclass(eq=False)
class Prediction:
    """Changes only through `apply`, `cancel`, `fail`, `expire` and `remove_data`; what comes
    after its end is ignored. `stream_key` is the secret part of its stream's URL."""

    owner: str
    model: str
    version: str
    input: Mapping[str, Any] | None
    deployment: str | None = None
    deadline: timedelta | None = None
    id: str = field(default_factory=lambda: _random_id(26))
    stream_key: str = field(default_factory=lambda: _random_id(48))
    status: Status = Status.STARTING
    output: list[Any] | None = None
    logs: str | None = ""
    error: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started_at: datetime | None = None
    completed_at: datetime | None = None
    data_removed: bool = False
    events: EventLog = field(default_factory=EventLog)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def apply(self, event: CogEvent) -> None:
        """Take in what the Cog runtime says."""
        if self.ended.is_set():
            return
        match event:
            case Started():
                self.status = Status.PROCESSING
                self.started_at = self.started_at or datetime.now(UTC)
            case Output(chunk=chunk):
                self._append(chunk)
            case Log(text=text):
                self.logs = (self.logs or "") + text
            case Metric():
                self._record(event)
            case Completed():
                self._complete(event)

    def cancel(self) -> None:
        """End as `canceled`, keeping the output so far."""
        self._end(Status.CANCELED, "canceled")

    def fail(self, error: str) -> None:
        """End as `failed`, keeping the output so far."""
        if not self.ended.is_set():
            self.error = error
            self.events.error(error)
        self._end(Status.FAILED, "error")

    def expire(self) -> None:
        """The deadline has come."""
        if self.status is Status.STARTING:
            self._end(Status.ABORTED, "canceled")
        else:
            self.cancel()

    def remove_data(self) -> None:
        """Forget input, output and logs, as Replicate does after an hour."""
        self.data_removed = True
        self.input = self.output = self.logs = None
        self.events.clear()

    def show(self, base: str) -> dict[str, Any]:
        """The API's JSON object; `base` is the URL up to and including /v1."""
        shown = {
            "id": self.id,
            "model": f"{self.owner}/{self.model}",
            "version": self.version,
            "input": self.input,
            "logs": self.logs,
            "output": self.output,
            "data_removed": self.data_removed,
            "error": self.error,
            "source": "api",
            "status": str(self.status),
            "created_at": timestamp(self.created_at),
            "started_at": self.started_at and timestamp(self.started_at),
            "completed_at": self.completed_at and timestamp(self.completed_at),
            "metrics": self.metrics,
            "urls": {
                "get": f"{base}/predictions/{self.id}",
                "cancel": f"{base}/predictions/{self.id}/cancel",
                "stream": f"{base}/streams/{self.stream_key}",
            },
        }
        if self.deployment is not None:
            shown["deployment"] = self.deployment
        if self.deadline is not None:
            shown["deadline"] = timestamp(self.created_at + self.deadline)
        return shown

    def _append(self, chunk: Any) -> None:
        if self.output is None:
            self.output = []
        self.output.append(chunk)
        self.events.output(chunk)

    def _record(self, metric: Metric) -> None:
        old = self.metrics.get(metric.name)
        if metric.mode == "increment" and isinstance(old, int | float):
            self.metrics[metric.name] = old + metric.value
        elif metric.mode == "append":
            before = old if isinstance(old, list) else []
            self.metrics[metric.name] = [*before, metric.value]
        else:
            self.metrics[metric.name] = metric.value

    def _complete(self, event: Completed) -> None:
        for name, value in event.metrics.items():
            self.metrics.setdefault(name, value)
        if event.status == "succeeded":
            self._end(Status.SUCCEEDED, None)
        elif event.status == "canceled":
            self.cancel()
        else:
            self.fail(event.error or "the model failed without a reason")

    def _end(self, status: Status, reason: str | None) -> None:
        if self.ended.is_set():
            return
        self.status = status
        self.completed_at = datetime.now(UTC)
        ran = self.completed_at - (self.started_at or self.completed_at)
        self.metrics.setdefault("predict_time", ran.total_seconds())
        self.metrics["total_time"] = (self.completed_at - self.created_at).total_seconds()
        self.events.done(reason)
        self.ended.set()


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with six digits of a second, as Replicate writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
