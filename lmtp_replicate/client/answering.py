"""Where a prediction's output goes: through the line decoder to the streams of its batch, and past
those who learn from it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from lmtp_replicate.client.batch import Batch
from lmtp_replicate.client.boot_notice import BootNotice
from lmtp_replicate.client.endpoint import ReplicateEndpoint
from lmtp_replicate.client.pace import Pace, Progress
from lmtp_replicate.protocol.codecs import LineDecoder


class Answering:
    """The answers to `batch` by one prediction, whose create was sent at `began` (loop's time)."""

    def __init__(
        self,
        endpoint: ReplicateEndpoint,
        batch: Batch,
        pace: Pace,
        boots: BootNotice,
        began: float,
    ) -> None:
        self._endpoint = endpoint
        self._batch = batch
        self._pace = pace
        self._boots = boots
        self._began = began
        self._waited = False
        self._lines = LineDecoder()
        self._progress = Progress()

    def created(self, prediction: Mapping[str, Any], asked: int | None) -> None:
        """The create was answered just now; it asked the server to wait for `asked` seconds."""
        seconds = self._now() - self._began
        if asked is None:
            self._pace.created(seconds)
        else:
            self._waited = bool(prediction.get("output"))
            self._pace.waited(asked, seconds, is_answered=self._waited)

    @property
    def is_complete(self) -> bool:
        """Whether all that was asked for is in."""
        return self._batch.over.is_set()

    @property
    def is_unwanted(self) -> bool:
        """Whether some of it was given up."""
        return self._batch.unwanted.is_set()

    def saw(self, prediction: Mapping[str, Any]) -> None:
        """Replicate has described the prediction."""
        self._batch.entry.saw(prediction)

    def text(self, text: str) -> None:
        """The next piece of output."""
        self.running()
        items = self._lines.feed(text)
        self._progress.saw(items)
        self._batch.deliver(items)

    def end(self) -> None:
        """There is no more output."""
        self._batch.deliver(self._lines.finish())

    def connected(self, seconds: float) -> None:
        """An event stream was opened in that time."""
        self._pace.connected(seconds)

    def starting(self) -> None:
        """The prediction waits for a cold model."""
        self._boots.starting(
            self._endpoint.label,
            self,
            since=self._began,
            patience=self._endpoint.patience.boot_timeout,
        )

    def running(self) -> None:
        """It does not wait for the model (any more)."""
        self._boots.over(self._endpoint.label, self)

    def close(self) -> None:
        """Nothing more comes of it."""
        self.running()
        if self._progress.began is not None and not self._waited:
            self._pace.began(self._progress.began - self._began)
        self._pace.went(self._progress)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
