"""Replicate's HTTP API: one request at a time, tried again where that is right, and every failure
as one of our errors."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

import aiohttp

from lmtp_replicate.client.account import Account
from lmtp_replicate.client.retry import Failure, delay_before_retry, requested_delay
from lmtp_replicate.client.stats import Stats
from lmtp_replicate.errors import (
    AuthenticationError,
    EndpointError,
    LmtpReplicateError,
    PredictionError,
    TransportError,
)

log = logging.getLogger(__name__)
NOTICEABLE: Final = 5.0
"""Seconds of waiting from which on the user is told."""
MOST_FIRST_CALLS: Final = 5
"""After so many attempts a host that was never heard of is taken for a wrong one."""
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=90)


@dataclass(frozen=True)
class Answer:
    """An object of Replicate's, and the headers that it came with."""

    body: Mapping[str, Any]
    headers: Mapping[str, str]


class TooManyRequests(Exception):  # noqa: N818 - the limiter decides whether it is an error
    """429: not done, and to be asked for again later. `error` is for when it is not."""

    def __init__(self, failure: Failure, error: LmtpReplicateError) -> None:
        super().__init__(str(error))
        self.failure = failure
        self.error = error


class Api:
    """`account`'s API. Paths are relative to its base URL. `count` is told what it costs."""

    def __init__(
        self, account: Account, session: aiohttp.ClientSession, count: Callable[[Stats], None]
    ) -> None:
        self._account = account
        self._session = session
        self.count = count

    async def get(self, path: str, *, is_first_call: bool = False) -> Mapping[str, Any]:
        """The object at `path`. A first call gives up sooner when nobody can be reached, since
        then the address may be wrong and nothing is at stake yet."""
        most = MOST_FIRST_CALLS if is_first_call else None
        answer = await self._request("GET", path, None, repeatable=True, most_calls=most)
        assert answer is not None
        return answer.body

    async def create(
        self, path: str, body: Mapping[str, Any], give_up: asyncio.Event, wait: int | None = None
    ) -> Answer | None:
        """What was created, or None when `give_up` was set before the request was accepted. The
        server is asked to hold its answer back for up to `wait` seconds, until the output is there.

        Never sent twice where the first may have been accepted. Must not be cancelled: the
        prediction would run on without anyone who could stop it. Raises `TooManyRequests` for 429.
        """
        prefer = {} if wait is None else {"Prefer": f"wait={wait}"}
        return await self._request(
            "POST", path, body, repeatable=False, give_up=give_up, more_headers=prefer
        )

    async def cancel(self, path: str) -> Mapping[str, Any]:
        """Cancel the prediction, and tell what it is then; one that is over or unknown is no
        error."""
        try:
            answer = await self._request("POST", path, None, repeatable=True)
            return answer.body if answer is not None else {}
        except EndpointError as error:
            log.debug("nothing to cancel: %s", error)
            return {}

    def open_stream(
        self, url: str, last_event_id: str | None
    ) -> aiohttp.client._RequestContextManager:
        """The response of an event stream, from the event after `last_event_id` on."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if last_event_id is not None:
            headers["Last-Event-ID"] = last_event_id
        headers |= self._account.headers_for(url)
        return self._session.get(url, headers=headers, timeout=_TIMEOUT)

    async def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        *,
        repeatable: bool,
        give_up: asyncio.Event | None = None,
        most_calls: int | None = None,
        more_headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Answer | None:
        give_up = give_up or asyncio.Event()  # which nobody sets
        url = self._account.base_url + path
        for attempt in itertools.count(1):
            if give_up.is_set():
                break
            if attempt > 1:
                self.count(Stats(retries=1))
            outcome = await self._attempt(method, url, body, more_headers)
            if not isinstance(outcome, _Refusal):
                return outcome
            if outcome.failure.status == 429 and not repeatable:
                raise TooManyRequests(outcome.failure, outcome.error)
            jitter = random.random()  # noqa: S311 - spreads retries, guards nothing
            delay = delay_before_retry(
                outcome.failure, attempt, repeatable=repeatable, jitter=jitter
            )
            if delay is None or (attempt == most_calls and not outcome.failure.was_sent):
                raise outcome.error
            level = logging.WARNING if delay > NOTICEABLE else logging.INFO
            log.log(level, "%s; trying again in %.1f s", outcome.error, delay)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(give_up.wait(), delay)
        return None

    async def _attempt(
        self,
        method: str,
        url: str,
        body: Mapping[str, Any] | None,
        more_headers: Mapping[str, str],
    ) -> Answer | _Refusal:
        headers = {**self._account.headers_for(url), **more_headers}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
            self.count(Stats(bytes_sent=len(data)))
        try:
            async with self._session.request(
                method, url, data=data, headers=headers, timeout=_TIMEOUT
            ) as response:
                self.count(Stats(bytes_received=len(await response.read())))
                text = await response.text(errors="replace")
                answer = _json(text)
                if response.ok and isinstance(answer, Mapping):
                    return Answer(answer, response.headers)
                retry_after = requested_delay(response.headers, answer, datetime.now(UTC))
                failure = Failure(response.status, retry_after=retry_after)
                reason = self._account.masked(_reason(answer, text))
                error = error_for(response.status, f"{method} {url}", reason)
                return _Refusal(failure, error)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return _Refusal(Failure(was_sent=False), unreachable(url, error))
        except (aiohttp.ClientError, TimeoutError) as error:
            return _Refusal(Failure(), unreachable(url, error))


class _Refusal:
    """An attempt that failed, and the error that it is if it was the last."""

    def __init__(self, failure: Failure, error: LmtpReplicateError) -> None:
        self.failure = failure
        self.error = error


def unreachable(url: str, error: Exception) -> TransportError:
    """The error for a connection that could not be made or broke."""
    return TransportError(
        f"{url} cannot be reached: {error or type(error).__name__}. Check the network, and "
        "REPLICATE_BASE_URL if it is set."
    )


def error_for(status: int, request: str, reason: str) -> LmtpReplicateError:
    """The error for an answer that refuses the request."""
    said = f"{request} was answered {status}: {reason}"
    match status:
        case 401:
            return AuthenticationError(
                f"the API token was refused; check REPLICATE_API_TOKEN. {said}"
            )
        case 403:
            return AuthenticationError(f"REPLICATE_API_TOKEN does not permit this. {said}")
        case 402 | 404 | 410:
            return EndpointError(said)
        case 429:
            return TransportError(f"too many requests, also after waiting. {said}")
        case _ if 400 <= status < 500:
            return PredictionError(said)
        case _:
            return TransportError(said)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _reason(answer: Any, text: str) -> str:
    """The problem's title and detail; of another body (a proxy's HTML) the beginning."""
    if isinstance(answer, Mapping):
        parts = [
            str(answer[key]).strip() for key in ("title", "detail", "error") if answer.get(key)
        ]
        if parts:
            return ": ".join(parts)
    return " ".join(text.split())[:200] or "(no reason given)"
