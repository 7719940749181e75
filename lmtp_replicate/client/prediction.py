"""One prediction on Replicate: its output text as it is produced, and its end.

Event streams end early (Replicate cuts them after 30 silent seconds), repeat what they have sent,
and may be missing. So the stream is only the fast way to the text; the prediction object is the
truth, asked for whenever the stream falls silent or ends without `done`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import aiohttp

from lmtp_replicate.client.answering import Answering
from lmtp_replicate.client.api import Api
from lmtp_replicate.client.endpoint import ReplicateEndpoint
from lmtp_replicate.client.sse import Event, EventDecoder
from lmtp_replicate.client.stats import Stats
from lmtp_replicate.errors import PredictionError, TransportError

log = logging.getLogger(__name__)

FIRST_LOOK: Final = 5.0
"""Seconds without an event after which the state is asked for the first time; later looks are
further apart."""
LONGEST_LOOK: Final = 30.0
LAST_WORDS: Final = 1.0
"""Seconds that a prediction has to end by itself after all its streams have ended."""
FIRST_POLL: Final = 0.1
LONGEST_POLL: Final = 2.0
LOG_LINES: Final = 10
ENDED: Final = ("succeeded", "failed", "canceled", "aborted")


class Prediction:
    """Follows one prediction, as its create described it; tells `answering` what comes."""

    def __init__(
        self,
        api: Api,
        endpoint: ReplicateEndpoint,
        created: Mapping[str, Any],
        answering: Answering,
    ) -> None:
        self._api = api
        self._endpoint = endpoint
        self.id = str(created["id"])
        # `urls.get` may lead around the proxy or host name that the user has chosen; this does not.
        self.path = f"/predictions/{quote(self.id, safe='')}"
        self._created = created
        self._stream_url = (created.get("urls") or {}).get("stream")
        self._answering = answering
        self._seen_ids: set[str] = set()
        self._last_id: str | None = None
        self._taken = 0
        """Length of the output that was handed on."""
        self._streamed = 0
        """Length of the output that the stream has brought."""
        self._news = 0
        self._is_running = False
        self._loop = asyncio.get_running_loop()
        self._last_news = self._loop.time()
        self.is_over = False
        """Whether the server is done with it, so that there is nothing to cancel."""

    async def follow(self) -> None:
        """Read until the prediction is over or, shortly after the last answer, for no longer.

        Raises `PredictionError` when it failed or was cancelled, `TransportError` when it can no
        longer be followed or the patience for a cold or silent model is at its end.
        """
        self._look_into(self._created)
        look, poll = FIRST_LOOK, FIRST_POLL
        while not self.is_over:
            news = self._news
            if self._stream_url is None or not await self._read_stream(look):
                await asyncio.sleep(poll)  # nothing will tell us: the wait between two questions
                poll = min(LONGEST_POLL, poll * 1.5)
            if self.is_over or self._answering.is_complete:
                return
            self._judge(await self._api.get(self.path))
            if self._news > news:
                poll = FIRST_POLL
            look = min(LONGEST_LOOK, look * 2)

    def close(self) -> None:
        """It is not followed any more."""
        self._answering.close()

    def _look_into(self, created: Mapping[str, Any]) -> None:
        """A create that was waited for tells output, or even the end. Complete output may come with
        `processing`: then the end is so near that it need not be seen."""
        if created.get("status") in ENDED:
            self._judge(created)
        elif created.get("output"):
            self._is_running = True
            self._add_output(created)
            self.is_over = self._answering.is_complete and not self._answering.is_unwanted

    async def _read_stream(self, look: float) -> bool:
        """Read events until the stream ends or nothing comes for `look` seconds; whether this
        stream is worth another try at once."""
        assert self._stream_url is not None
        decoder, news, began = EventDecoder(), self._news, self._loop.time()
        try:
            async with (
                asyncio.timeout(look) as patience,
                self._api.open_stream(self._stream_url, self._last_id) as response,
            ):
                if response.status != 200 or response.content_type != "text/event-stream":
                    log.info("the event stream was answered %s", response.status)
                    self._check_gone(response.status)
                    return False
                self._answering.connected(self._loop.time() - began)
                async for chunk in response.content.iter_any():
                    self._api.count(Stats(bytes_received=len(chunk)))
                    for event in decoder.feed(chunk):
                        if self._take(event):
                            return True
                        left = LAST_WORDS if self._answering.is_complete else look
                        patience.reschedule(self._loop.time() + left)
        except TimeoutError:
            return True
        except aiohttp.ClientError as error:
            log.info("the event stream broke: %s", error)
        return self._news > news

    def _check_gone(self, status: int) -> None:
        if status in (404, 410):
            self._stream_url = None

    def _take(self, event: Event) -> bool:
        """Act on one event; whether it was the last."""
        if event.id is not None:
            if event.id in self._seen_ids:
                return False
            self._seen_ids.add(event.id)
            self._last_id = event.id
        match event.type:
            case "output":
                self._is_running = True
                self._streamed += len(event.data)
                self._take_rest(event.data, self._streamed)
            case "done":
                # Why it ended badly, and what the stream has lost, the prediction alone tells.
                self.is_over = self._answering.is_complete and not _reason_of(event.data)
                if self.is_over:
                    self._answering.saw({"status": "succeeded"})
                return True
        return False

    def _take_rest(self, text: str, end: int) -> None:
        """Hand on what is new of `text`, which ends at `end` of the whole output."""
        if end > self._taken:
            rest = text[self._taken - end :]
            self._taken = end
            self._news += 1
            self._last_news = self._loop.time()
            self._answering.text(rest)

    def _judge(self, state: Mapping[str, Any]) -> None:
        """Act on the prediction as Replicate describes it."""
        self._answering.saw(state)
        status = state.get("status")
        match status:
            case "succeeded":
                self._finish(state)
            case _ if status in ENDED:
                self._finish(state)
                raise PredictionError(self._epitaph(state))
            case "starting":
                if not self._is_running:
                    self._answering.starting()
                self._check_patience(self._endpoint.patience.boot_timeout, "was still starting")
            case _:
                if self._stream_url is None:
                    self._add_output(state)
                if not self._is_running:
                    self._is_running = True
                    self._last_news = self._loop.time()
                    self._answering.running()
                self._check_patience(self._endpoint.patience.idle_timeout, "was silent")

    def _finish(self, state: Mapping[str, Any]) -> None:
        self._add_output(state)
        self._answering.end()
        self.is_over = True

    def _add_output(self, state: Mapping[str, Any]) -> None:
        """Take what is new of it. Its pieces joined are the stream's text."""
        output = state.get("output")
        text = "".join(map(str, output)) if isinstance(output, list) else str(output or "")
        self._take_rest(text, len(text))

    def _check_patience(self, limit: float, state: str) -> None:
        waited = self._loop.time() - self._last_news
        if waited >= limit:
            raise TransportError(
                f"prediction {self.id} of {self._endpoint.label} {state} after {waited:.0f} s and "
                "was given up; the endpoint's boot_timeout and idle_timeout say for how long to "
                "wait (replicate:ORG/MODEL?boot_timeout=3600)"
            )

    def _epitaph(self, state: Mapping[str, Any]) -> str:
        error = state.get("error")
        reason = (
            error if isinstance(error, str) else json.dumps(error) if error else "no reason given"
        )
        logs = str(state.get("logs") or "").strip().splitlines()[-LOG_LINES:]
        tail = "".join(f"\n  {line}" for line in logs)
        return f"prediction {self.id} of {self._endpoint.label} {state.get('status')}: {reason}" + (
            f"\nlast lines of its log:{tail}" if tail else ""
        )


def _reason_of(data: str) -> str | None:
    """Why a prediction ended otherwise than well, from the data of `done`."""
    try:
        done = json.loads(data)
    except ValueError:
        return None
    return done.get("reason") if isinstance(done, Mapping) else None
