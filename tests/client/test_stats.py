"""What `stats` tells is what the server has seen."""

from __future__ import annotations

import asyncio
import multiprocessing

import pytest

import lmtp_replicate
from lmtp_replicate.client import Client, Stats, connect
from lmtp_replicate.errors import EndpointError
from lmtp_replicate.serving.websocket_server import WebSocketServer
from tests.client.replicate_double import PREDICT_TIME, ReplicateDouble
from tests.client.test_replicate import ENDPOINT, heard, quiet, tokens
from tests.holding import Hold
from tests.scripted_engine import ScriptedEngine


async def scores(client: Client) -> list[int]:
    return [item.token async for item in client.score([5], [6, 7])]


@pytest.fixture
def before() -> Stats:
    return lmtp_replicate.stats()


async def test_ops_predictions_and_tokens(replicate: ReplicateDouble, before: Stats) -> None:
    client = connect(ENDPOINT)
    await asyncio.gather(tokens(client, 5, 4), tokens(client, 9, 6), scores(client))
    await quiet(replicate)
    cost = lmtp_replicate.stats() - before
    assert (cost.ops, cost.predictions) == (3, len(replicate.predictions)) == (3, 1)
    assert cost.tokens_requested == cost.tokens_received == cost.tokens_used == 12
    assert (cost.retries, cost.from_memory, cost.joined) == (0, 0, 0)
    assert client.stats.ops == 3


async def test_answers_that_cost_nothing(replicate: ReplicateDouble, before: Stats) -> None:
    client, other = connect(ENDPOINT), connect(ENDPOINT)
    await asyncio.gather(tokens(client, 9, 4), tokens(other, 9, 4))
    await scores(client)
    await scores(other)
    cost = lmtp_replicate.stats() - before
    assert (cost.ops, cost.joined, cost.from_memory, cost.predictions) == (4, 1, 1, 2)
    assert (cost.tokens_received, cost.tokens_used) == (6, 12)
    assert (client.stats.predictions, other.stats.predictions) == (2, 0)


async def test_tokens_for_nobody_are_received_but_not_used(
    replicate: ReplicateDouble, before: Stats
) -> None:
    held = Hold(replicate.engine, 22)
    client = connect(ENDPOINT)
    left = client.generate([20], max_tokens=40)
    reading = asyncio.ensure_future(tokens(client, 30, 50))
    await anext(left)
    left.close()
    await heard()
    held.go_on.set()
    await reading
    cost = lmtp_replicate.stats() - before
    assert cost.tokens_requested == cost.tokens_received == 90
    assert 51 <= cost.tokens_used < 90


@pytest.mark.usefixtures("patient")
async def test_gpu_seconds_come_with_answers_that_are_asked_for_anyway(
    replicate: ReplicateDouble, before: Stats
) -> None:
    client = connect(ENDPOINT)
    await tokens(client, 5)  # ends with `done`: nobody asks what it has cost
    await quiet(replicate)
    assert (lmtp_replicate.stats() - before).predictions_timed == 0
    assert replicate.requests.count("GET /predictions/prediction0") == 0
    replicate.engine._step_seconds = 0.002
    stream = client.generate([2], max_tokens=400)
    await anext(stream)
    stream.close()  # and is cancelled, which tells
    await quiet(replicate)
    cost = lmtp_replicate.stats() - before
    assert (cost.predictions, cost.predictions_timed) == (2, 1)
    assert cost.gpu_seconds == pytest.approx(PREDICT_TIME)
    assert "1 of 2 predictions" in str(cost)


async def test_refused_creates_are_retries_and_bytes(
    replicate: ReplicateDouble, before: Stats
) -> None:
    await tokens(connect(ENDPOINT), 5)
    await quiet(replicate)
    once = lmtp_replicate.stats() - before
    replicate.faults.refusals.append((503, {"Retry-After": "0"}, "{}"))
    await tokens(connect(ENDPOINT), 20)
    await quiet(replicate)
    twice = lmtp_replicate.stats() - before - once
    assert (once.retries, twice.retries, twice.predictions) == (0, 1, 1)
    sent = len(replicate.predictions[1].input["ops_batch_json"])
    assert 2 * sent < twice.bytes_sent < 2 * sent + 600
    assert twice.bytes_received > len("".join(replicate.predictions[1].output))


async def test_one_endpoint_whatever_its_settings(replicate: ReplicateDouble) -> None:
    was, elsewhere = lmtp_replicate.stats(ENDPOINT), lmtp_replicate.stats("replicate:org/other")
    await tokens(connect(f"{ENDPOINT}?memory=off"), 5)
    assert (lmtp_replicate.stats(ENDPOINT) - was).ops == 1
    assert lmtp_replicate.stats("replicate", model="org/model") == lmtp_replicate.stats(ENDPOINT)
    assert lmtp_replicate.stats("replicate:org/other") == elsewhere
    with pytest.raises(EndpointError):
        lmtp_replicate.stats("replicate:org")


async def test_over_a_websocket(before: Stats) -> None:
    engine = ScriptedEngine()
    async with (
        WebSocketServer(engine) as server,
        connect(f"ws://127.0.0.1:{server.port}") as client,
    ):
        await asyncio.gather(tokens(client, 5, 4), scores(client))
        cost = lmtp_replicate.stats() - before
    engine.close()
    assert (cost.ops, cost.predictions, cost.tokens_requested) == (2, 0, 6)
    assert (cost.tokens_received, cost.tokens_used) == (6, 6)
    assert cost.bytes_sent > 0 < cost.bytes_received


async def test_a_client_is_settled_when_nothing_of_it_runs(replicate: ReplicateDouble) -> None:
    replicate.engine._step_seconds = 0.002
    client, told = connect(ENDPOINT), asyncio.get_running_loop().create_future()
    stream = client.generate([2], max_tokens=400)
    await anext(stream)
    loop = asyncio.get_running_loop()
    client.when_settled(lambda cost: loop.call_soon_threadsafe(told.set_result, cost))
    await asyncio.sleep(0)
    assert not told.done()
    stream.close()
    cost = await asyncio.wait_for(told, 20)
    assert replicate.cancelled == ["prediction0"]
    assert (cost.predictions, cost.gpu_seconds) == (1, PREDICT_TIME)
    again = asyncio.get_running_loop().create_future()
    client.when_settled(again.set_result)  # nothing runs: at once
    assert again.result() == cost


def _ops(sender: multiprocessing.connection.Connection) -> None:
    sender.send(lmtp_replicate.stats().ops)


async def test_a_forked_child_counts_from_nothing(replicate: ReplicateDouble) -> None:
    await tokens(connect(ENDPOINT), 5)
    assert lmtp_replicate.stats().ops > 0
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_ops, args=(sender,))
    child.start()
    assert await asyncio.to_thread(receiver.recv) == 0
    child.join()
