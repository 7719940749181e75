"""LMTP on websockets, as unmodified LMQL 0.7.3 speaks it, for many peers and one engine."""

from __future__ import annotations

import asyncio
import hmac
import logging
from typing import Self

from aiohttp import hdrs, web

from lmtp_replicate.engine.interface import Engine
from lmtp_replicate.errors import ConfigError
from lmtp_replicate.serving.connection import Connection

log = logging.getLogger(__name__)

OUTGOING_BYTES = 32 * 2**20
SHUTDOWN_SECONDS = 5.0


class WebSocketServer:
    """Serves `engine` (which stays the caller's to close) at one address.

    Any path is the websocket, but for GET /health: 200, or 503 with the reason once the engine has
    failed. Web pages of other sites are refused. With a `token`, a websocket needs the header
    `Authorization: Bearer TOKEN`. More than `outgoing_bytes` waiting for a peer that does not read
    disconnects that peer.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        outgoing_bytes: int = OUTGOING_BYTES,
    ) -> None:
        self._engine = engine
        self._host = host
        self._port = port
        self._token = token
        self._outgoing_bytes = outgoing_bytes
        self._connections: set[Connection] = set()
        self._runner = web.AppRunner(
            self._application(), access_log=None, shutdown_timeout=SHUTDOWN_SECONDS
        )

    @property
    def port(self) -> int:
        """The port listened on, also where 0 was asked for."""
        return int(self._runner.addresses[0][1])

    async def start(self) -> None:
        """Begin to listen. Raises `ConfigError` where that address cannot be had."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(
                f"cannot listen on {self._host}:{self._port}: {error.strerror or error}. "
                "Is another server running there? Choose another with --port"
            ) from error

    async def close(self) -> None:
        """End all streams, close all connections and stop listening."""
        await self._runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _application(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/health", self._health)
        application.router.add_get("/{path:.*}", self._websocket)
        application.on_shutdown.append(self._stop_connections)
        return application

    async def _health(self, _: web.Request) -> web.Response:
        reason = self._engine.failure
        if reason is None:
            return web.json_response({"status": "ok"})
        return web.json_response({"status": "failed", "reason": reason}, status=503)

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        if _is_from_another_site(request):
            return web.json_response(
                {"error": "web pages of other sites may not use this server"}, status=403
            )
        if not self._may(request):
            return web.json_response(
                {"error": "the server needs its token: Authorization: Bearer TOKEN"},
                status=401,
                headers={hdrs.WWW_AUTHENTICATE: "Bearer"},
            )
        if not web.WebSocketResponse().can_prepare(request):
            return web.json_response(
                {"error": "this is an LMTP server: connect to it with a websocket"},
                status=426,
                headers={hdrs.UPGRADE: "websocket"},
            )
        connection = Connection(request, self._engine, self._outgoing_bytes)
        self._connections.add(connection)
        try:
            return await connection.serve()
        finally:
            self._connections.discard(connection)

    def _may(self, request: web.Request) -> bool:
        if self._token is None:
            return True
        given = request.headers.get(hdrs.AUTHORIZATION, "")
        wanted = f"Bearer {self._token}"
        return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())

    async def _stop_connections(self, _: web.Application) -> None:
        reason = "the server is stopping"
        await asyncio.gather(*(connection.stop(reason) for connection in self._connections))


def _is_from_another_site(request: web.Request) -> bool:
    """Whether a browser asks in the name of another site's page. Browsers let every page connect to
    every server, also to one on this machine, but say the page's origin; other clients say none."""
    origin = request.headers.get(hdrs.ORIGIN)
    return origin is not None and origin.partition("://")[2].lower() != request.host.lower()
