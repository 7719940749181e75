"""LMTP over websockets: against our server, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import WSMsgType, web

from lmtp_replicate.client import connect
from lmtp_replicate.client.hub import process_hub
from lmtp_replicate.errors import (
    AuthenticationError,
    EndpointError,
    StreamError,
    TransportError,
)
from lmtp_replicate.serving.websocket_server import WebSocketServer
from tests.client.test_replicate import until
from tests.scripted_engine import ScriptedEngine


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    engine = ScriptedEngine()
    yield engine
    engine.close()


@pytest.fixture
async def server(engine: ScriptedEngine) -> AsyncIterator[WebSocketServer]:
    async with WebSocketServer(engine) as server:
        yield server


def endpoint(server: WebSocketServer) -> str:
    return f"ws://127.0.0.1:{server.port}"


async def read(stream: Any) -> list[int]:
    return [item.token async for item in stream]


async def test_many_streams_on_one_connection(server: WebSocketServer) -> None:
    async with connect(endpoint(server)) as client, connect(endpoint(server)) as other:
        streams = [
            c.generate([start], max_tokens=start) for start in (3, 9) for c in (client, other)
        ]
        scores = client.score([5], [6, 7])
        answers = await asyncio.gather(*map(read, [*streams, scores]))
        assert answers[0] == answers[1] == [4, 5, 6]
        assert answers[2] == answers[3] == list(range(10, 19))
        assert answers[4] == [6, 7]
        assert (await client.model_info())["vocab_size"] == 64
    assert len(server._connections) == 1


async def test_masks_travel_by_name(server: WebSocketServer) -> None:
    async with connect(endpoint(server)) as client:
        await client.model_info()
        bias = dict.fromkeys(range(2, 60, 2), -100)
        for _ in range(2):
            assert await read(client.generate([4], max_tokens=2, logit_bias=bias)) == [5, 7]


async def test_leaving_takes_the_stream_out_of_the_engine(
    server: WebSocketServer, engine: ScriptedEngine
) -> None:
    engine._step_seconds = 0.002
    client = connect(endpoint(server))
    kept, left = client.generate([2], max_tokens=40), client.generate([2], max_tokens=100_000)
    await asyncio.gather(anext(kept), anext(left))
    left.close()
    assert len(await read(kept)) == 39
    await until(lambda: not (engine.open_streams or process_hub().running))


async def test_one_failing_op_leaves_the_others_alone(server: WebSocketServer) -> None:
    client = connect(endpoint(server))
    bad = client.generate([5], logit_bias={200: 100})
    results = await asyncio.gather(
        read(bad), read(client.generate([5], max_tokens=2)), return_exceptions=True
    )
    assert isinstance(results[0], StreamError)
    assert results[1] == [6, 7]


async def test_a_lost_connection_fails_its_streams_and_the_next_op_connects_again(
    engine: ScriptedEngine,
) -> None:
    engine._step_seconds = 0.002
    async with WebSocketServer(engine) as server:
        port = server.port
        client = connect(f"ws://127.0.0.1:{port}")
        stream = client.generate([2], max_tokens=100_000)
        await anext(stream)
        (connection,) = server._connections
        connection._abort()
        with pytest.raises(TransportError, match=f"ws://127.0.0.1:{port} was lost"):
            await asyncio.wait_for(read(stream), 20)
        assert await read(client.generate([5], max_tokens=2)) == [6, 7]
    with pytest.raises(TransportError):  # it may be sent before the loss is noticed
        await read(client.generate([5], max_tokens=2))
    with pytest.raises(TransportError, match=r"cannot be reached.*lmtp-replicate serve"):
        await read(client.generate([5], max_tokens=2))


async def test_the_servers_token(engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    async with WebSocketServer(engine, token="open sesame") as server:
        with pytest.raises(AuthenticationError, match="LMTP_REPLICATE_TOKEN"):
            await read(connect(endpoint(server)).generate([5]))
        monkeypatch.setenv("LMTP_REPLICATE_TOKEN", "open sesame")
        assert await read(connect(endpoint(server)).generate([5], max_tokens=1)) == [6]


async def test_what_is_no_lmtp_server(replicate) -> None:
    url = replicate.url.replace("http://", "ws://")
    with pytest.raises(TransportError, match="no LMTP server: it answered 404"):
        await read(connect(url).generate([5]))
    with pytest.raises(EndpointError):
        connect("nowhere")


Answer = Callable[[web.WebSocketResponse, str, dict[str, Any]], Coroutine[Any, Any, None]]


@asynccontextmanager
async def scripted(answer: Answer, card: object = None) -> AsyncIterator[str]:
    """A websocket server that calls `answer` for each op but MODEL_INFO, which is answered by
    `card` if there is one."""

    async def serve(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                kind, _, body = message.data.partition(" ")
                op = json.loads(body)
                if kind != "MODEL_INFO":
                    await answer(socket, kind, op)
                elif card is not None:
                    info = {"stream_id": op["stream_id"], "model_info": card}
                    await socket.send_str(f"MSG {json.dumps(info)}")
        return socket

    app = web.Application()
    app.router.add_get("/", serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"ws://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ('MSG [{"stream_id": ID, "error": "no such model"}]', "no such model"),
        ('TOKEN [{"stream_id": ID, "error": "too long"}]', "too long"),
        ('TOKEN [{"stream_id": ID, "token": "x", "logprob": 0}]', "token"),
        ('TOKEN [{"stream_id": ID, "finish_reason": "stop"}]', "after 0 of at least 1 tokens"),
        ("TOKEN nonsense", "was lost while streams were open: TOKEN: not valid JSON"),
        ('TOKEN [{"error": "somewhere"}]', "somewhere"),
    ],
)
async def test_a_broken_answer_is_an_error_and_never_a_hang(frame: str, reason: str) -> None:
    async def answer(socket: web.WebSocketResponse, kind: str, op: dict[str, Any]) -> None:
        await socket.send_str(frame.replace("ID", str(op["stream_id"])))

    async with scripted(answer) as url:
        stream = connect(url).generate([5])
        with pytest.raises((StreamError, TransportError), match=reason):
            await asyncio.wait_for(read(stream), 20)


async def test_items_after_the_end_and_unknown_streams_are_dropped() -> None:
    async def answer(socket: web.WebSocketResponse, kind: str, op: dict[str, Any]) -> None:
        item = {"stream_id": op["stream_id"], "token": 7, "logprob": -1.0, "top_logprobs": {}}
        last = item | {"finish_reason": "length"}
        stranger = item | {"stream_id": 10**9}
        await socket.send_str(f"TOKEN {json.dumps([stranger, item, last, last, item])}")

    async with scripted(answer) as url:
        client = connect(url, model="gpt2")
        assert await read(client.generate([5])) == [7, 7]
        assert await read(client.generate([5])) == [7, 7]


@pytest.mark.parametrize(
    "card",
    [None, {}, *({"extensions": odd} for odd in (5, True, "cancel", {}, [["cancel"], None]))],
)
async def test_a_server_that_does_not_know_cancel_is_not_told(card: object) -> None:
    kinds: list[str] = []

    async def answer(socket: web.WebSocketResponse, kind: str, op: dict[str, Any]) -> None:
        kinds.append(kind)
        item = {"stream_id": op["stream_id"], "token": 7, "logprob": -1.0, "top_logprobs": {}}
        await socket.send_str(f"TOKEN {json.dumps([item])}")

    async with scripted(answer, card) as url:
        client = connect(url)
        left = client.generate([5])
        await anext(left)
        left.close()
        await anext(client.generate([5]))
    assert kinds == ["GENERATE", "GENERATE"]
