"""LMTP over Replicate: each batch of ops is one prediction."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from lmtp_replicate.client.account import Account
from lmtp_replicate.client.answering import Answering
from lmtp_replicate.client.api import Api, TooManyRequests
from lmtp_replicate.client.batch import Batch
from lmtp_replicate.client.endpoint import ReplicateEndpoint
from lmtp_replicate.client.hub import Hub
from lmtp_replicate.client.limiter import Create, remaining_of
from lmtp_replicate.client.memory import Memory
from lmtp_replicate.client.pace import Pace
from lmtp_replicate.client.peer import Throttled, Turn
from lmtp_replicate.client.prediction import Prediction
from lmtp_replicate.client.release import LookUp, Release, find_release
from lmtp_replicate.client.stats import Stats, tally_of
from lmtp_replicate.errors import (
    EndpointError,
    LmtpReplicateError,
    PredictionError,
    StreamError,
    TransportError,
)
from lmtp_replicate.protocol.batch_size import BatchSize
from lmtp_replicate.protocol.codecs import encode_batch
from lmtp_replicate.protocol.limits import LIMITS
from lmtp_replicate.protocol.messages import EXTENSIONS, Dialect, ModelInfo, Op

log = logging.getLogger(__name__)


class ReplicatePeer:
    """A model or deployment, seen through one account; looked up once per process."""

    def __init__(self, hub: Hub, endpoint: ReplicateEndpoint, account: Account) -> None:
        self._hub = hub
        self._endpoint = endpoint
        self._model = f"{endpoint.owner}/{endpoint.name}"
        self._account = account
        self._limiter = hub.limiter(account)
        self.label = endpoint.label
        self.tally = tally_of(endpoint)
        self._look_up = LookUp(lambda: find_release(self._api(self.tally.add), endpoint))
        self._has_asked = False
        self.info: Mapping[str, Any] | None = None
        """The answer to MODEL_INFO, once known."""
        self.savings = endpoint.savings
        self.pace = Pace()
        self.memory = Memory(lambda: self.info)

    async def turn(self) -> Turn:
        """Once the endpoint is looked up and the account may create one more prediction."""
        is_old_news = self._look_up.is_done
        release = await self._look_up.release()
        create = await self._limiter.turn()
        size = BatchSize(names_masks=self._is_compact(release), model=self._model)
        run = partial(self._run, create, is_old_news=is_old_news)
        return Turn(size, self.pace.window, run, give_up=create.end)

    async def _run(self, create: Create, batch: Batch, *, is_old_news: bool) -> None:
        """Have `batch` answered by one prediction, and cancel it when nobody waits any more."""
        batch.on_info = self._take_info
        try:
            if create.is_void:
                raise Throttled
            if create.was_delayed:
                batch.entry.count(Stats(creates_delayed=1))
            prediction = await self._begin(create, batch, is_old_news=is_old_news)
            if prediction is not None:
                await self._follow(prediction, batch)
        except LmtpReplicateError as error:
            batch.fail(error)
        finally:
            create.end()
            self._has_asked = self.info is not None

    async def close(self) -> None:
        """Give up looking."""
        await self._look_up.close()

    def _api(self, count: Callable[[Stats], None]) -> Api:
        return Api(self._account, self._hub.session(), count)

    async def _begin(self, create: Create, batch: Batch, *, is_old_news: bool) -> Prediction | None:
        """The created prediction, or None when everybody left before it was. is_old_news: the
        release was known before the batch was made."""
        release = await self._look_up.release()
        try:
            return await self._create(release, create, batch)
        except (EndpointError, PredictionError):
            # Refused, so it did not run: the version may be gone since we looked.
            self._look_up.forget(release)
            newer = await self._look_up.release() if is_old_news else release
            if newer == release:
                raise
            self._has_asked, self.info = False, None
            return await self._create(newer, create, batch)

    async def _create(self, release: Release, create: Create, batch: Batch) -> Prediction | None:
        """As `_begin`."""
        body = self._body(release, batch)
        api = self._api(batch.entry.count)
        wait = self._seconds_to_wait(batch.ops)
        began = asyncio.get_running_loop().time()
        try:
            answer = await api.create(release.path, body, give_up=batch.unwanted, wait=wait)
        except TooManyRequests as refusal:
            if not create.refused(refusal.failure):
                raise refusal.error from None
            log.info("%s", refusal.error)
            api.count(Stats(retries=1))
            raise Throttled from None
        if answer is None:
            return None
        create.accepted(remaining_of(answer.headers))
        created = answer.body
        batch.entry.created(len(body["input"]["ops_batch_json"]))
        batch.entry.saw(created)
        if not created.get("id"):
            raise TransportError(f"{release.path} answered without the prediction's id")
        self._see_version(created, release)
        answering = Answering(self._endpoint, batch, self.pace, self._hub.boots, began)
        answering.created(created, wait)
        return Prediction(api, self._endpoint, created, answering)

    def _body(self, release: Release, batch: Batch) -> dict[str, Any]:
        """Of the request to create the prediction. Raises `StreamError` for an op that is too
        large; such a one is alone in its batch."""
        ops = [*self._introduction(release), *batch.ops]
        text = encode_batch(ops, model=self._model, extended=self._is_compact(release))
        if len(text) > LIMITS.message_bytes:
            raise StreamError(
                f"the op is too large: {len(text)} bytes as JSON, at most {LIMITS.message_bytes} "
                "can be sent; shorten its prompt or its mask"
            )
        fields = {"ops_batch_json": text}
        if release.dialect is Dialect.EXTENDED:
            fields["encoding"] = release.dialect.value
        body: dict[str, Any] = {"input": fields}
        if release.version is not None:
            body["version"] = release.version
        return body

    def _seconds_to_wait(self, ops: Sequence[Op]) -> int | None:
        """For `Prefer: wait`; None where streaming is better, or a create may hold up others."""
        may_wait = self.savings.wait and not self._limiter.is_tight
        return self.pace.seconds_to_wait(ops) if may_wait else None

    def _is_compact(self, release: Release) -> bool:
        return release.dialect is Dialect.EXTENDED and self.savings.compact

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

    def _take_info(self, info: Mapping[str, Any]) -> None:
        self.info = info

    async def _follow(self, prediction: Prediction, batch: Batch) -> None:
        """Read the prediction's output until it is over or nobody waits any more."""
        try:
            await self._read(prediction, batch)
        except LmtpReplicateError as error:
            batch.fail(error)  # before the cancelling, which may take long or be in vain
        finally:
            prediction.close()
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
