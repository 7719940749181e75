"""The websocket server with LMQL's own client, and with peers that misbehave."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgpack
import pytest
from lmql.models.lmtp.errors import LMTPStreamError
from lmql.models.lmtp.lmtp_client import LMTPWebSocketClient

from lmtp_replicate.errors import ConfigError
from lmtp_replicate.protocol.limits import LIMITS
from lmtp_replicate.serving.websocket_server import WebSocketServer
from tests.scripted_engine import EOS, ScriptedEngine
from tests.serving.stepwise_engine import StepwiseEngine


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def address(server: WebSocketServer) -> str:
    return f"http://127.0.0.1:{server.port}"


async def upstream(http: aiohttp.ClientSession, server: WebSocketServer) -> Any:
    """LMQL's own client, connected as LMQL does it."""
    client = LMTPWebSocketClient("scripted", await http.ws_connect(address(server)))
    client.connect()
    return client


async def receive(socket: aiohttp.ClientWebSocketResponse) -> tuple[str, Any]:
    """The kind and the items of the next text frame."""
    kind, _, body = (await socket.receive_str(timeout=10)).partition(" ")
    return kind, json.loads(body)


async def receive_binary(socket: aiohttp.ClientWebSocketResponse) -> tuple[str, Any]:
    """The kind and the items of the next binary frame."""
    frame = await socket.receive_bytes(timeout=10)
    ((kind, found),) = msgpack.unpackb(frame, strict_map_key=False)
    return kind, found


async def generate(client: Any, prompt: list[int], **arguments: Any) -> list[int]:
    return [item["token"] async for item in client.generate(prompt, **arguments)]


async def test_upstreams_client_generates_scores_and_asks(
    engine: ScriptedEngine, http: aiohttp.ClientSession
) -> None:
    async with WebSocketServer(engine) as server:
        client = await upstream(http, server)
        options = {"temperature": 0.0, "logit_bias": None, "top_logprobs": 2}
        found = [item async for item in client.generate([5], max_tokens=6, **options)]
        assert [item["token"] for item in found] == [6, 7, 8, 9, 10, 11]
        assert found[-1]["finish_reason"] == "length"
        assert all(len(item["top_logprobs"]) == 2 for item in found)
        masked = await generate(client, [5], max_tokens=2, logit_bias={"40": 100, "41": 100})
        assert masked == [40, 41]
        assert await generate(client, [5], max_tokens=9, logit_bias={str(EOS): 100}) == [EOS]
        assert [item["token"] async for item in client.score([5], [6, 7, 8])] == [6, 7, 8]
        info = await client.request("MODEL_INFO", {"model": "scripted"})
        assert info["model_info"]["model"] == "scripted"


async def test_many_peers_and_many_streams_at_once(
    engine: ScriptedEngine, http: aiohttp.ClientSession
) -> None:
    async with WebSocketServer(engine) as server:
        clients = [await upstream(http, server) for _ in range(5)]
        runs = [generate(c, [4 + i], max_tokens=30) for i, c in enumerate(clients)]
        for index, found in enumerate(await asyncio.wait_for(asyncio.gather(*runs), 30)):
            assert found == list(range(5 + index, 35 + index))


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "GENERATE",
        "GENERATE {",
        "GENERATE []",
        'GENERATE {"stream_id": 7}',
        'DANCE {"stream_id": 7}',
        'GENERATE {"stream_id": 7, "prompt": [1], "logit_bias": {"x": 1}}',
        'GENERATE {"stream_id": 7, "prompt": [1], "temperature": NaN}',
        "[" * 100_000,
        "GENERATE " + "9" * (LIMITS.message_bytes + 1),
        'GENERATE {"stream_id": 7, "logit_bias": {' + '"1": 1, ' * 600_000,
        b"\xc1",
        b"",
        msgpack.packb({"GENERATE": 1}),
    ],
    ids=lambda frame: repr(frame[:40]),
)
async def test_a_bad_frame_is_answered_and_loses_nothing(
    frame: str | bytes, engine: ScriptedEngine, http: aiohttp.ClientSession
) -> None:
    async with WebSocketServer(engine) as server:
        neighbour = await upstream(http, server)
        async with http.ws_connect(address(server)) as socket:
            await (socket.send_bytes if isinstance(frame, bytes) else socket.send_str)(frame)
            if isinstance(frame, bytes):
                kind, found = await receive_binary(socket)
            else:
                kind, found = await receive(socket)
            assert kind == "TOKEN"
            assert found[0]["error"]
            assert found[0]["stream_id"] == (7 if '"stream_id": 7' in str(frame) else None)
            await socket.send_bytes(
                msgpack.packb([["GENERATE", {"stream_id": 8, "prompt": [5], "max_tokens": 1}]])
            )
            kind, found = await receive_binary(socket)
            assert (kind, found[0]["token"]) == ("TOKEN", 6)
        assert await generate(neighbour, [5], max_tokens=2) == [6, 7]


async def test_a_binary_peer_is_extended(
    stepwise: StepwiseEngine, http: aiohttp.ClientSession
) -> None:
    """It gets every token at once, several streams in a frame, and can cancel."""
    async with WebSocketServer(stepwise) as server, http.ws_connect(address(server)) as socket:
        op = {"prompt": [5], "max_tokens": 100}
        await socket.send_bytes(msgpack.packb([["GENERATE", op | {"stream_id": 1}]]))
        stepwise.allow(5)
        found: list[dict[str, Any]] = []
        while len(found) < 5:
            found += (await receive_binary(socket))[1]
        assert [item["token"] for item in found] == [6, 7, 8, 9, 10]
        commands = [["CANCEL", {"stream_id": 1}], ["MODEL_INFO", {"stream_id": 2}]]
        await socket.send_bytes(msgpack.packb(commands))
        assert (await receive_binary(socket))[0] == "MSG"  # and what came before is done
        stepwise.allow(2)
        while "token" in found[-1]:
            found += (await receive_binary(socket))[1]
        assert found[-1] == {"stream_id": 1, "finish_reason": "cancelled"}


async def test_a_peer_that_leaves_takes_its_streams_out_of_the_engine(
    stepwise: StepwiseEngine, http: aiohttp.ClientSession
) -> None:
    async with WebSocketServer(stepwise) as server:
        async with http.ws_connect(address(server)) as socket:
            op = {"stream_id": 1, "prompt": [5], "max_tokens": 100}
            await socket.send_str(f"GENERATE {json.dumps(op)}")
            stepwise.allow(2)
            assert (await receive(socket))[1][0]["token"] == 6
        # The closing has been answered, so the server knows; one step later the stream is out.
        client = await upstream(http, server)
        await client.request("MODEL_INFO", {})
        stepwise.allow(10)
        assert await generate(client, [20], max_tokens=3) == [21, 22, 23]
        assert stepwise.begun <= 2 + 2 + 3  # hardly more than those that were read


async def test_upstream_never_hangs_when_the_engine_fails(
    stepwise: StepwiseEngine, http: aiohttp.ClientSession
) -> None:
    async with WebSocketServer(stepwise) as server:
        client = await upstream(http, server)
        early = asyncio.create_task(generate(client, [5], max_tokens=100))
        stepwise.allow(1)
        await asyncio.to_thread(stepwise.wait_until_made, 1)
        stepwise.crash("out of memory")
        with pytest.raises(LMTPStreamError, match="out of memory"):
            await asyncio.wait_for(early, 10)
        with pytest.raises(LMTPStreamError, match="out of memory"):
            await asyncio.wait_for(generate(client, [5], max_tokens=100), 10)
        async with http.get(f"{address(server)}/health") as health:
            assert health.status == 503
            assert await health.json() == {"status": "failed", "reason": "out of memory"}


async def test_streams_end_when_the_server_stops(
    stepwise: StepwiseEngine, http: aiohttp.ClientSession
) -> None:
    """LMQL would wait for ever on a socket that is closed without endings."""
    server = WebSocketServer(stepwise)
    await server.start()
    client = await upstream(http, server)
    running = asyncio.create_task(generate(client, [5], max_tokens=100))
    stepwise.allow(6)
    await asyncio.to_thread(stepwise.wait_until_made, 6)
    await server.close()
    assert await asyncio.wait_for(running, 10) == [6, 7, 8, 9, 10, 11]


async def test_a_peer_that_does_not_read_is_dropped_and_the_engine_goes_on(
    http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ScriptedEngine(context_length=10**6)
    try:
        async with WebSocketServer(engine, outgoing_bytes=10_000) as server:
            async with http.ws_connect(address(server)) as deaf:
                transport = deaf._response.connection.transport  # type: ignore[union-attr]
                transport.pause_reading()  # type: ignore[union-attr]
                with caplog.at_level(logging.WARNING):
                    op = {"stream_id": 1, "prompt": [5], "max_tokens": 900_000}
                    await deaf.send_str(f"GENERATE {json.dumps(op | {'top_logprobs': 60})}")
                    client = await upstream(http, server)
                    while not any("does not read" in r.message for r in caplog.records):
                        assert await generate(client, [5], max_tokens=20) == list(range(6, 26))
                transport.resume_reading()  # type: ignore[union-attr]
            assert engine.failure is None
    finally:
        engine.close()


async def test_a_token_keeps_others_out(
    engine: ScriptedEngine, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with WebSocketServer(engine, token="s3cret") as server:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await http.ws_connect(address(server), headers=headers)
                assert refused.value.status == 401
            right = {"Authorization": "Bearer s3cret"}
            async with http.ws_connect(address(server), headers=right) as socket:
                await socket.send_str('MODEL_INFO {"stream_id": 1}')
                assert (await receive(socket))[0] == "MSG"
            async with http.get(f"{address(server)}/health") as health:
                assert health.status == 200
    assert "s3cret" not in caplog.text


async def test_pages_of_other_sites_are_refused(
    engine: ScriptedEngine, http: aiohttp.ClientSession
) -> None:
    """Any page a browser shows may connect to this machine, and would use the model unseen."""
    async with WebSocketServer(engine) as server:
        other_port = f"http://127.0.0.1:{server.port + 1}"
        for origin in ("https://evil.example", "null", "", "http://[", other_port):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await http.ws_connect(address(server), headers={"Origin": origin})
            assert refused.value.status == 403, origin
        async with http.ws_connect(address(server), headers={"Origin": address(server)}) as socket:
            await socket.send_str('MODEL_INFO {"stream_id": 1}')
            assert (await receive(socket))[0] == "MSG"


async def test_a_browser_is_told_what_this_is(
    engine: ScriptedEngine, http: aiohttp.ClientSession
) -> None:
    async with WebSocketServer(engine) as server, http.get(address(server)) as answer:
        assert answer.status == 426
        assert "websocket" in await answer.text()


async def test_a_port_in_use_is_a_clear_error(engine: ScriptedEngine) -> None:
    async with WebSocketServer(engine) as first:
        with pytest.raises(ConfigError, match=f"127.0.0.1:{first.port}.*--port"):
            await WebSocketServer(engine, port=first.port).start()
