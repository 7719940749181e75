"""Things go wrong in mid-stream, and the next query is answered all the same."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from lmtp_replicate import LmtpReplicateError, connect
from lmtp_replicate.errors import StreamError
from lmtp_replicate.protocol.codecs import decode_items
from lmtp_replicate.protocol.messages import ErrorItem, Item, TokenItem
from tests.end_to_end.test_mission_query import ask
from tests.gateway_thread import TOKEN, GatewayThread

pytestmark = pytest.mark.slow

ENDPOINT = "replicate:local/demo"
PROMPT = [9, 10, 11]


async def continued(endpoint: str, count: int = 5) -> int:
    async with connect(endpoint) as client:
        return len([item async for item in client.generate(PROMPT, max_tokens=count)])


def children(pid: int) -> list[int]:
    """The processes that `pid` started, and theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it has ended
            for child in (task / "children").read_text().split():
                found += [int(child), *children(int(child))]
    return found


def cog_processes(model: str) -> list[int]:
    """The processes of the Cog runtime of `model`, its workers last."""
    return [
        pid for pid in children(os.getpid()) if Path(f"/proc/{pid}/cwd").resolve().name == model
    ]


async def failed_by_a_kill(which: int) -> bool:
    """Kill a process of the runtime when a stream has begun; whether the stream failed of it. It
    may have come to its end before, where something else held up this process."""
    assert await continued(f"{ENDPOINT}?memory=off") >= 1  # the runtime runs
    victim, tokens = cog_processes("demo")[which], 1
    async with connect(f"{ENDPOINT}?memory=off") as client:
        # No id ends this stream before the context does.
        stream = client.generate(PROMPT, max_tokens=400, logit_bias={0: -100, 1: -100, 2: -100})
        await anext(stream)
        os.kill(victim, signal.SIGKILL)
        try:
            async for _ in stream:
                tokens += 1
        except LmtpReplicateError:
            return True
    assert tokens == 400
    return False


@pytest.mark.parametrize("which", [0, -1], ids=["server", "worker"])
async def test_a_killed_cog_process_fails_the_stream_and_the_next_query_is_answered(
    which: int, gateway: GatewayThread, tokenizer: str
) -> None:
    for _ in range(5):
        if await failed_by_a_kill(which):
            break
    else:
        pytest.fail("no stream fails when its process is killed")
    answer = await asyncio.to_thread(ask, ENDPOINT, tokenizer)
    assert answer.classification == " positive"


async def test_a_client_that_leaves_in_mid_stream_leaves_nothing_running(
    gateway: GatewayThread, served: str
) -> None:
    for endpoint in (ENDPOINT, f"ws://{served}"):
        async with connect(endpoint) as client:
            stream = client.generate(PROMPT, max_tokens=400)
            await anext(stream)
        assert await continued(endpoint) >= 1
    gateway.wait_until_quiet()


GARBAGE = [
    "GENERATE {",
    "GENERATE {}",
    "nonsense",
    "",
    'GENERATE {"stream_id": 1, "prompt": [-1], "model": "m"}',
    'GENERATE {"stream_id": 1, "prompt": [999999999], "model": "m"}',
    'SCORE {"stream_id": 1, "prompt": "text", "scored": null}',
    "GENERATE " + "[" * 100_000,
    'CANCEL {"stream_id": "x"}',
]


async def test_garbage_on_the_websocket_leaves_the_server_healthy(served: str) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(f"http://{served}") as ws:
        for frame in GARBAGE:
            await ws.send_str(frame)
        await ws.send_bytes(b"\xc1\xff garbage")
        await ws.send_str(
            'GENERATE {"stream_id": 99, "model": "m", "prompt": [9], "max_tokens": 1}'
        )
        items: list[Item] = []
        while not any(isinstance(item, TokenItem) for item in items):
            items += decode_items((await ws.receive(timeout=30)).data)
        assert all(isinstance(item, ErrorItem) for item in items[:-1])
        assert len(items) > len(GARBAGE)
        async with session.get(f"http://{served}/health") as health:
            assert health.status == 200


async def test_garbage_in_a_prediction_is_an_error_of_its_own(gateway: GatewayThread) -> None:
    version = gateway.version("demo")
    headers = {"Authorization": f"Bearer {TOKEN}", "Prefer": "wait"}
    async with aiohttp.ClientSession(gateway.gateway.url, headers=headers) as session:
        for batch in ("{", "[[1]]", '[["GENERATE", {}]]', '[["SCORE"]]', "null", "[" * 9999):
            body = {"version": version, "input": {"ops_batch_json": batch}}
            async with session.post("/v1/predictions", json=body) as created:
                assert created.status == 201
                prediction = await created.json()
                output = "".join(prediction["output"] or [])
                assert prediction["error"] or "error" in output, (batch, prediction)
    assert await continued(ENDPOINT) >= 1


async def test_one_bad_op_fails_alone(gateway: GatewayThread) -> None:
    async with connect(ENDPOINT) as client:
        bad = client.generate([100_000], max_tokens=3)
        good = client.generate(PROMPT, max_tokens=3, logit_bias={0: -100, 1: -100, 2: -100})

        async def outcome(stream: object) -> object:
            try:
                return len([item async for item in stream])  # type: ignore[attr-defined]
            except StreamError as error:
                return str(error)

        failed, length = await asyncio.gather(outcome(bad), outcome(good))
    assert "prompt" in str(failed)
    assert length == 3
