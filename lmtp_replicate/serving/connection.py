"""One peer of the websocket server."""

from __future__ import annotations

import asyncio
import logging

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from lmtp_replicate.engine.interface import Engine
from lmtp_replicate.errors import ProtocolError
from lmtp_replicate.protocol.codecs import decode_frame, encode_frame
from lmtp_replicate.protocol.limits import LIMITS
from lmtp_replicate.protocol.mask_names import MaskNames
from lmtp_replicate.protocol.messages import Cancel, Dialect, ErrorItem, Item, ModelInfo, Op
from lmtp_replicate.serving.outbox import Outbox, frames
from lmtp_replicate.serving.session import Session

log = logging.getLogger(__name__)

LARGE_FRAME = 2**16
"""Frames of more bytes than this are decoded beside the event loop."""
MESSAGE_BYTES = 2 * LIMITS.message_bytes
"""A larger frame closes the connection; one that is merely too large is answered with an error."""
CLOSE_SECONDS = 2.0
"""So long the peer may take to answer our closing; one that has stopped reading never does."""


class Connection:
    """Reads ops from `socket` and writes what the engine answers, until either side closes.

    The peer counts as one of upstream's until it shows that it knows more: by a binary frame, a
    CANCEL, or extensions in its MODEL_INFO.
    """

    def __init__(self, request: web.Request, engine: Engine, outgoing_bytes: int) -> None:
        self._request = request
        self._socket = web.WebSocketResponse(max_msg_size=MESSAGE_BYTES, timeout=CLOSE_SECONDS)
        self._peer = request.remote
        self._writer: asyncio.Task[None] | None = None
        self._outbox = Outbox(outgoing_bytes, self._drop_slow_peer)
        self._session = Session(engine, self._outbox.put)
        self._masks = MaskNames()
        self._binary = False

    async def serve(self) -> web.WebSocketResponse:
        """Talk to the peer until it leaves; its streams are then cancelled."""
        await self._socket.prepare(self._request)
        self._writer = asyncio.create_task(self._write())
        try:
            async for message in self._socket:
                await self._read(message)
        finally:
            self._session.close()
            self._writer.cancel()
        return self._socket

    async def stop(self, reason: str) -> None:
        """Give all streams their endings, write what is waiting and close the connection."""
        if self._writer is None:
            return
        self._session.cancel()
        self._session.close()
        self._outbox.finish()
        await asyncio.wait([self._writer], timeout=CLOSE_SECONDS)
        await self._socket.close(code=WSCloseCode.GOING_AWAY, message=reason.encode())

    async def _read(self, message: WSMessage) -> None:
        if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
            return
        frame: str | bytes = message.data
        self._binary = self._binary or isinstance(frame, bytes)
        try:
            if len(frame) > LARGE_FRAME:
                ops = await asyncio.to_thread(decode_frame, frame, self._masks)
            else:
                ops = decode_frame(frame, self._masks)
        except ProtocolError as error:
            ops = [ErrorItem(error.stream_id, str(error))]
        if self._binary or any(map(_is_extended, ops)):
            self._session.dialect = Dialect.EXTENDED
        self._session.receive(ops)

    async def _write(self) -> None:
        try:
            while items := await self._outbox.take():
                await self._send(items)
        except ConnectionError:
            pass  # the peer has left: the reader finds that out too
        except Exception:
            log.exception("%s is disconnected: its answers could not be sent", self._peer)
            self._abort()

    async def _send(self, items: list[Item]) -> None:
        for run in frames(items):
            for frame in encode_frame(run, binary=self._binary):
                if isinstance(frame, bytes):
                    await self._socket.send_bytes(frame)
                else:
                    await self._socket.send_str(frame)

    def _drop_slow_peer(self) -> None:
        log.warning("%s is disconnected: it does not read the tokens it asked for", self._peer)
        self._session.close()
        self._abort()

    def _abort(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()


def _is_extended(op: Op | ErrorItem) -> bool:
    return isinstance(op, Cancel) or (isinstance(op, ModelInfo) and bool(op.extensions))
