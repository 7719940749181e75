"""The predictions that the gateway remembers: by id, by stream, newest first in pages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lmtp_replicate.gateway.prediction import Prediction

PAGE = 100


@dataclass(frozen=True)
class Retention:
    """Data (input, output, logs) of an ended prediction lives `data_seconds`; at most `records`
    predictions are remembered, of which the oldest ended ones go first."""

    data_seconds: float = 3600.0
    records: int = 10_000


@dataclass(frozen=True)
class Page:
    """Up to PAGE predictions, newest first; the cursors name the neighbouring pages."""

    predictions: list[Prediction]
    previous: str | None
    next: str | None


class PredictionStore:
    """Predictions in the order of their creation."""

    def __init__(self, retention: Retention) -> None:
        self._retention = retention
        self._by_id: dict[str, Prediction] = {}
        self._by_stream: dict[str, Prediction] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self._by_id.values())

    def add(self, prediction: Prediction) -> None:
        """Remember it, forgetting the oldest ended one when there are too many."""
        self._by_id[prediction.id] = prediction
        self._by_stream[prediction.stream_key] = prediction
        if len(self._by_id) > self._retention.records:
            oldest = next((p for p in self if p.ended.is_set()), None)
            if oldest is not None:
                self._forget(oldest)

    def ended(self, prediction: Prediction) -> None:
        """Let the time run after which the prediction's data is removed."""
        loop = asyncio.get_running_loop()
        self._timers[prediction.id] = loop.call_later(
            self._retention.data_seconds, prediction.remove_data
        )

    def get(self, prediction_id: str) -> Prediction | None:
        """The prediction of that id."""
        return self._by_id.get(prediction_id)

    def by_stream(self, stream_key: str) -> Prediction | None:
        """The prediction whose stream's URL ends in that key."""
        return self._by_stream.get(stream_key)

    def page(
        self, cursor: str | None, wanted: Callable[[Prediction], bool] = lambda _: True
    ) -> Page:
        """The page whose newest prediction has the id `cursor`; the first page for None.

        Raises KeyError for a cursor that no page of the `wanted` ones starts with.
        """
        newest_first = [p for p in reversed(self._by_id.values()) if wanted(p)]
        start = 0
        if cursor is not None:
            places = {p.id: place for place, p in enumerate(newest_first)}
            start = places[cursor]
        end = start + PAGE
        before = max(start - PAGE, 0)
        return Page(
            predictions=newest_first[start:end],
            previous=newest_first[before].id if start > 0 else None,
            next=newest_first[end].id if end < len(newest_first) else None,
        )

    def close(self) -> None:
        """Stop the clocks."""
        for timer in self._timers.values():
            timer.cancel()

    def _forget(self, prediction: Prediction) -> None:
        del self._by_id[prediction.id], self._by_stream[prediction.stream_key]
        timer = self._timers.pop(prediction.id, None)
        if timer is not None:
            timer.cancel()
