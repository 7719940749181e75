"""LMTP over Replicate: each batch of ops is one prediction."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from lmtp_replicate.client.account import Account
from lmtp_replicate.client.api import Api
from lmtp_replicate.client.batch import Batch
from lmtp_replicate.client.endpoint import ReplicateEndpoint
from lmtp_replicate.client.hub import Hub
from lmtp_replicate.client.memory import Memory
from lmtp_replicate.client.prediction import Prediction
from lmtp_replicate.client.release import Release, find_release
from lmtp_replicate.client.stats import Stats, tally_of
from lmtp_replicate.errors import (
    EndpointError,
    LmtpReplicateError,
    PredictionError,
    StreamError,
    TransportError,
)
from lmtp_replicate.protocol.codecs import LineDecoder, encode_batch
from lmtp_replicate.protocol.messages import EXTENSIONS, Dialect, ModelInfo, Op

log = logging.getLogger(__name__)


class ReplicatePeer:
    """A model or deployment, seen through one account; looked up once per process."""

    def __init__(self, hub: Hub, endpoint: ReplicateEndpoint, account: Account) -> None:
        self._hub = hub
        self._endpoint = endpoint
        self._account = account
        self.label = endpoint.label
        self.tally = tally_of(endpoint)
        self._release: asyncio.Task[Release] | None = None
        self._has_asked = False
        self._has_told_of_boot = False
        self.info: Mapping[str, Any] | None = None
        """The answer to MODEL_INFO, once known."""
        self.savings = endpoint.savings
        self.memory = Memory(lambda: self.info)

    async def run(self, batch: Batch) -> None:
        """Have `batch` answered by one prediction, and cancel it when nobody waits any more."""
        batch.on_info = self._take_info
        try:
            prediction = await self._begin(batch)
            if prediction is not None:
                await self._follow(prediction, batch)
        except LmtpReplicateError as error:
            batch.fail(error)
        finally:
            self._has_asked = self.info is not None

    async def close(self) -> None:
        """Give up looking."""
        if self._release is not None:
            self._release.cancel()
            await asyncio.wait({self._release})

    def _api(self, count: Callable[[Stats], None]) -> Api:
        return Api(self._account, self._hub.session(), count)

    async def _begin(self, batch: Batch) -> Prediction | None:
        """The created prediction, or None when everybody left before it was."""
        is_old_news = self._release is not None and self._release.done()
        release = await self._find_release(batch)
        found = self._release
        if release is None:
            return None
        try:
            return await self._create(release, batch)
        except (EndpointError, PredictionError):
            # Refused, so it did not run: the version may be gone since we looked.
            if self._release is found:
                self._release = None
            newer = await self._find_release(batch) if is_old_news else None
            if newer is None or newer == release:
                raise
            self._has_asked, self.info = False, None
            return await self._create(newer, batch)

    async def _find_release(self, batch: Batch) -> Release | None:
        """What the endpoint stands for, or None when everybody left before that was known."""
        if self._release is None:
            self._release = asyncio.ensure_future(
                find_release(self._api(self.tally.add), self._endpoint)
            )
            self._release.add_done_callback(self._forget_failure)
        looking, leaving = self._release, asyncio.ensure_future(batch.unwanted.wait())
        await asyncio.wait({looking, leaving}, return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        return looking.result() if looking.done() else None

    def _forget_failure(self, release: asyncio.Task[Release]) -> None:
        """The next op looks again: what was wrong may have been put right."""
        if self._release is release and (release.cancelled() or release.exception() is not None):
            self._release = None

    async def _create(self, release: Release, batch: Batch) -> Prediction | None:
        """As `_begin`."""
        ops = [*self._introduction(release), *batch.ops]
        extended = release.dialect is Dialect.EXTENDED
        name = f"{self._endpoint.owner}/{self._endpoint.name}"
        compact = extended and self._endpoint.savings.compact
        fields = {"ops_batch_json": encode_batch(ops, model=name, extended=compact)}
        if extended:
            fields["encoding"] = release.dialect.value
        body: dict[str, Any] = {"input": fields}
        if release.version is not None:
            body["version"] = release.version
        api = self._api(batch.entry.count)
        created = await api.create(release.path, body, give_up=batch.unwanted)
        if created is None:
            return None
        batch.entry.created(len(fields["ops_batch_json"]))
        batch.entry.saw(created)
        if not created.get("id"):
            raise TransportError(f"{release.path} answered without the prediction's id")
        self._see_version(created, release)
        lines = LineDecoder()
        return Prediction(
            api,
            self._endpoint,
            created,
            on_state=batch.entry.saw,
            on_text=lambda text: self._take_text(batch, lines, text),
            on_end=lambda: batch.deliver(lines.finish()),
            on_boot=self._tell_of_boot,
            is_answered=batch.over.is_set,
        )

    def _see_version(self, created: Mapping[str, Any], release: Release) -> None:
        """A deployment may run another version than before, which has another card and says other
        things."""
        is_chosen = release.version is not None
        if self.memory.see_version(created.get("version"), is_chosen=is_chosen):
            self._has_asked, self.info = False, None

    def _introduction(self, release: Release) -> list[Op]:
        """MODEL_INFO rides in the first prediction, in front, so that its answer comes first."""
        if self._has_asked or release.dialect is not Dialect.EXTENDED:
            return []
        self._has_asked = True
        return [ModelInfo(self._hub.next_id(), frozenset(EXTENSIONS))]

    def _take_text(self, batch: Batch, lines: LineDecoder, text: str) -> None:
        self._has_told_of_boot = False  # it is warm; a later boot is news again
        batch.deliver(lines.feed(text))

    def _take_info(self, info: Mapping[str, Any]) -> None:
        self.info = info

    async def _follow(self, prediction: Prediction, batch: Batch) -> None:
        """Read the prediction's output until it is over or nobody waits any more."""
        try:
            await self._read(prediction, batch)
        except LmtpReplicateError as error:
            batch.fail(error)  # before the cancelling, which may take long or be in vain
        finally:
            if not prediction.is_over:
                await self._cancel(prediction, batch)

    async def _read(self, prediction: Prediction, batch: Batch) -> None:
        reading = asyncio.ensure_future(prediction.follow())
        leaving = asyncio.ensure_future(batch.unwanted.wait())
        await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        reading.cancel()
        ended = await asyncio.gather(reading, return_exceptions=True)
        if isinstance(ended[0], Exception):
            raise ended[0]
        batch.fail(
            StreamError(
                f"prediction {prediction.id} of {self._endpoint.label} ended before this op"
            )
        )

    async def _cancel(self, prediction: Prediction, batch: Batch) -> None:
        try:
            api = self._api(batch.entry.count)
            batch.entry.saw(await api.cancel(f"{prediction.path}/cancel"))
        except LmtpReplicateError as error:
            log.warning("prediction %s may run on, cancelling it failed: %s", prediction.id, error)

    def _tell_of_boot(self) -> None:
        if not self._has_told_of_boot:
            self._has_told_of_boot = True
            log.warning(
                "%s is starting up on Replicate; a cold model can take minutes. Waiting for up to "
                "%.0f s.",
                self._endpoint.label,
                self._endpoint.patience.boot_timeout,
            )
