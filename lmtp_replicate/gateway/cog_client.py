"""HTTP towards one Cog runtime: health, predictions as event streams, cancel."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

from lmtp_replicate.errors import PredictionError, TransportError
from lmtp_replicate.gateway.cog_events import CogEvent, EventReader

_BUSY = frozenset({406, 409, 503})
"""coglet's answers that may pass: the schema is not loaded yet, no free slot, not ready yet."""


_HEALTH_SECONDS = 30
"""For an answer about health; coglet itself gives up on its worker after 10."""


class CogBusyError(TransportError):
    """The runtime does not take the prediction now; it never ran."""


@dataclass(frozen=True)
class Health:
    """`status` is coglet's word (STARTING, READY, BUSY, SETUP_FAILED, DEFUNCT, UNHEALTHY, ...);
    `logs` what setup wrote, `complaint` what the model's own health check said."""

    status: str
    logs: str = ""
    complaint: str = ""

    @property
    def serving(self) -> bool:
        """Whether predictions can run, now or when one ends."""
        # coglet gives the model's check 5 seconds; a busy machine is no reason to kill a model.
        slow = self.status == "UNHEALTHY" and "timed out" in self.complaint
        return self.status in ("READY", "BUSY") or slow


class CogClient:
    """Speaks to the runtime at `url`; use as an async context manager or call `close`."""

    def __init__(self, url: str) -> None:
        self._url = url
        # A connection per request: on loopback it costs nothing, and no request can be lost on a
        # kept connection that the server was about to close.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        self._reading: set[aiohttp.StreamReader] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Drop every connection; coglet cancels the predictions read through them."""
        for content in self._reading:
            # aiohttp 3.14 forgets who reads from a connection that it closes: they would wait for
            # ever (ResponseHandler.close in its client_proto.py).
            content.set_exception(aiohttp.ClientConnectionError("the Cog runtime was stopped"))
        await self._session.close()

    async def health(self) -> Health:
        """The runtime's state; status UNREACHABLE when it does not answer, or was stopped."""
        if self._session.closed:
            return Health("UNREACHABLE")
        patience = aiohttp.ClientTimeout(total=_HEALTH_SECONDS)
        try:
            async with self._session.get(f"{self._url}/health-check", timeout=patience) as answer:
                body = await answer.json()
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return Health("UNREACHABLE")
        setup = body.get("setup") or {}
        return Health(
            status=str(body.get("status")),
            logs=str(setup.get("logs") or ""),
            complaint=str(body.get("user_healthcheck_error") or ""),
        )

    async def predict(
        self, prediction_id: str, values: Mapping[str, Any]
    ) -> AsyncGenerator[CogEvent, None]:
        """Run a prediction; closing the iterator early cancels it.

        Raises CogBusyError when it cannot run now, PredictionError when the runtime refuses the
        input, TransportError when the connection breaks.
        """
        if self._session.closed:
            raise CogBusyError("the Cog runtime was stopped")
        reader = EventReader()
        try:
            async with self._session.put(
                f"{self._url}/predictions/{prediction_id}",
                json={"input": dict(values)},
                headers={"Accept": "text/event-stream"},
            ) as answer:
                if answer.status != 200:
                    raise _refusal(answer.status, await answer.text())
                _acknowledge_at_once(answer)
                with self._known(answer.content):
                    async for piece in answer.content.iter_any():
                        _acknowledge_at_once(answer)
                        for event in reader.feed(piece):
                            yield event
        except aiohttp.ClientConnectorError as error:
            raise CogBusyError(f"the Cog runtime cannot be reached: {error}") from error
        except aiohttp.ClientError as error:
            raise TransportError(f"the connection to the Cog runtime broke: {error!r}") from error

    @contextmanager
    def _known(self, content: aiohttp.StreamReader) -> Iterator[None]:
        self._reading.add(content)
        try:
            yield
        finally:
            self._reading.discard(content)

    async def cancel(self, prediction_id: str) -> None:
        """Ask for the prediction's end; one that is not running is no error."""
        if self._session.closed:
            return
        try:
            async with self._session.post(f"{self._url}/predictions/{prediction_id}/cancel"):
                pass
        except aiohttp.ClientError as error:
            raise TransportError(f"the connection to the Cog runtime broke: {error!r}") from error


def _refusal(status: int, body: str) -> CogBusyError | PredictionError:
    if status in _BUSY:
        return CogBusyError(f"the Cog runtime answered {status}: {body[:200]}")
    return PredictionError(f"the Cog runtime refused the prediction ({status}): {body[:1000]}")


def _acknowledge_at_once(answer: aiohttp.ClientResponse) -> None:
    """Ask the kernel not to delay the next TCP acknowledgement.

    coglet leaves Nagle's algorithm on: it holds a small chunk back until the one before is
    acknowledged, which our side would do only after 40 ms. The option does not stick (tcp(7)), so
    it is set again after every read.
    """
    if hasattr(socket, "TCP_QUICKACK") and answer.connection and answer.connection.transport:
        connected = answer.connection.transport.get_extra_info("socket")
        if connected is not None:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
