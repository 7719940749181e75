"""LMTP over a websocket: one connection per endpoint and process carries all streams."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import aiohttp

from lmtp_replicate.client.batch import Batch
from lmtp_replicate.client.endpoint import WebSocketEndpoint
from lmtp_replicate.client.hub import Hub
from lmtp_replicate.client.memory import Memory
from lmtp_replicate.client.peer import Turn
from lmtp_replicate.client.settings import Savings
from lmtp_replicate.client.stats import Stats, tally_of
from lmtp_replicate.errors import (
    AuthenticationError,
    LmtpReplicateError,
    ProtocolError,
    StreamError,
    TransportError,
)
from lmtp_replicate.protocol.batch_size import BatchSize
from lmtp_replicate.protocol.codecs import decode_items, encode_op
from lmtp_replicate.protocol.limits import LIMITS
from lmtp_replicate.protocol.mask_names import MaskNames
from lmtp_replicate.protocol.messages import (
    EXTENSIONS,
    Cancel,
    ErrorItem,
    Info,
    ModelInfo,
    Op,
    Usage,
)

log = logging.getLogger(__name__)
HEARTBEAT: Final = 30.0
"""Seconds between the pings that notice a dead connection."""
TOKEN_VARIABLE: Final = "LMTP_REPLICATE_TOKEN"  # noqa: S105 - the variable's name is no secret


class WebSocketPeer:
    """An LMTP server, connected when first needed and again after a loss."""

    def __init__(self, hub: Hub, endpoint: WebSocketEndpoint, token: str | None) -> None:
        self._hub = hub
        self.label = endpoint.label
        self.tally = tally_of(endpoint)
        self._endpoint = endpoint
        self._token = token
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()
        self.info: Mapping[str, Any] | None = None
        """The answer to MODEL_INFO, once known."""
        # An op on an open connection costs no prediction, and nothing tells that the model behind
        # an address has become another one.
        self.savings = Savings(memory=False, join=False)
        self.memory = Memory(lambda: self.info)

    async def turn(self) -> Turn:
        """At once: an op on an open connection costs no more alone than with others."""
        return Turn(BatchSize(names_masks=True), 0.0, self._run, give_up=lambda: None)

    async def _run(self, batch: Batch) -> None:
        """Have `batch` answered; each stream ends by itself, or with the connection."""
        connection = None
        try:
            connection = await self._connected()
            await connection.send(batch)
        except LmtpReplicateError as error:
            batch.fail(error)
        await batch.over.wait()
        if connection is not None:
            connection.forget(batch)

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.close()

    async def _connected(self) -> _Connection:
        async with self._connecting:
            if self._connection is None or self._connection.is_lost:
                socket = await self._connect()
                self._connection = _Connection(
                    socket, self._endpoint, self._take_info, self.tally.add
                )
                await self._connection.introduce(self._hub.next_id())
            return self._connection

    async def _connect(self) -> aiohttp.ClientWebSocketResponse:
        url = self._endpoint.url
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            return await self._hub.session().ws_connect(
                url, headers=headers, heartbeat=HEARTBEAT, max_msg_size=2 * LIMITS.message_bytes
            )
        except aiohttp.WSServerHandshakeError as error:
            if error.status in (401, 403):
                raise AuthenticationError(
                    f"{url} refused the connection ({error.status}); set {TOKEN_VARIABLE} to the "
                    "server's token"
                ) from None
            raise TransportError(
                f"{url} is no LMTP server: it answered {error.status} to the websocket handshake"
            ) from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TransportError(
                f"{url} cannot be reached: {error or type(error).__name__}. Is the server running "
                "(lmtp-replicate serve MODEL), and are host and port right?"
            ) from error

    def _take_info(self, info: Mapping[str, Any]) -> None:
        self.info = info


class _Connection:
    """Sends each item that arrives to its batch, by stream id."""

    def __init__(
        self,
        socket: aiohttp.ClientWebSocketResponse,
        endpoint: WebSocketEndpoint,
        on_info: Callable[[Mapping[str, Any]], None],
        count: Callable[[Stats], None],
    ) -> None:
        self._socket = socket
        self._endpoint = endpoint
        self._on_info = on_info
        self._count = count
        self._batches: dict[int, Batch] = {}
        self._masks = MaskNames()
        self._extensions: frozenset[str] | None = None
        """None until the server has told what it knows."""
        self._left: set[int] = set()
        """Streams to cancel once it has."""
        self._introduction = 0
        self.is_lost = False
        self._reader = asyncio.create_task(self._read())
        self._cancelling: set[asyncio.Task[None]] = set()

    async def introduce(self, stream_id: int) -> None:
        """Ask what the server knows, and tell what we do."""
        self._introduction = stream_id
        await self._send(ModelInfo(stream_id, frozenset(EXTENSIONS)))

    async def send(self, batch: Batch) -> None:
        """Send the batch's ops; their ids are known here before an answer can come."""
        batch.on_leave = self._leave
        batch.on_info = self._on_info
        self._batches.update((op.stream_id, batch) for op in batch.ops)
        for op in batch.ops:
            await self._send(op)
        batch.entry.sent()

    async def close(self) -> None:
        """Close the connection; open streams fail."""
        await asyncio.gather(*self._cancelling)
        await self._socket.close()
        await self._reader

    async def _send(self, op: Op) -> None:
        extended = "mask" in (self._extensions or ())
        frame = encode_op(
            op,
            model=self._endpoint.model,
            extended=extended,
            masks=self._masks if extended else None,
        )
        assert isinstance(frame, str)
        try:
            await self._socket.send_str(frame)
            self._count(Stats(bytes_sent=len(frame)))
        except (ConnectionError, aiohttp.ClientError) as error:
            raise self._lost(error) from error

    def _leave(self, stream_id: int) -> None:
        self._batches.pop(stream_id, None)
        self._left.add(stream_id)
        self._cancel_left()

    def _cancel_left(self) -> None:
        if self._extensions is None:
            return
        left, self._left = self._left, set()
        if "cancel" in self._extensions and not self.is_lost:
            for stream_id in left:
                task = asyncio.create_task(self._cancel(stream_id))
                self._cancelling.add(task)
                task.add_done_callback(self._cancelling.discard)

    async def _cancel(self, stream_id: int) -> None:
        try:
            await self._send(Cancel(stream_id))
        except TransportError as error:
            log.debug("nothing to cancel: %s", error)

    async def _read(self) -> None:
        reason: object = "the server closed it"
        try:
            async for message in self._socket:
                if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                    self._take(message.data)
        except ProtocolError as error:
            reason = error
            await self._socket.close()
        finally:
            self.is_lost = True
            self._fail_all(self._lost(self._socket.exception() or reason))

    def _take(self, frame: str | bytes) -> None:
        self._count(Stats(bytes_received=len(frame)))
        arrived: dict[Batch, list[Any]] = {}
        for item in decode_items(frame):
            match item:
                case Usage():
                    log.debug("usage: %s", item.usage)
                case ErrorItem(stream_id=None):
                    self._fail_all(StreamError(item.error))
                case Info(stream_id=self._introduction):
                    self._extensions = _extensions(item.model_info)
                    self._on_info(item.model_info)
                    self._cancel_left()
                case _:
                    batch = self._batches.get(item.stream_id) if item.stream_id else None
                    if batch is not None:
                        arrived.setdefault(batch, []).append(item)
        for batch, items in arrived.items():
            batch.deliver(items)

    def forget(self, batch: Batch) -> None:
        """Expect nothing more for the batch."""
        for op in batch.ops:
            self._batches.pop(op.stream_id, None)

    def _fail_all(self, error: LmtpReplicateError) -> None:
        batches, self._batches = set(self._batches.values()), {}
        for batch in batches:
            batch.fail(error)

    def _lost(self, reason: object) -> TransportError:
        return TransportError(
            f"the connection to {self._endpoint.url} was lost while streams were open: {reason}"
        )


def _extensions(info: Mapping[str, Any]) -> frozenset[str]:
    listed = info.get("extensions")
    if not isinstance(listed, list):
        return frozenset()
    return frozenset(name for name in listed if isinstance(name, str))
