"""Whoever stops reading, in whatever way, leaves nothing running on Replicate."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lmtp_replicate.client import Client, TokenStream, connect
from lmtp_replicate.client.hub import FAREWELL_SECONDS, close_process_hub, process_hub
from lmtp_replicate.errors import TransportError
from tests.client.replicate_double import ReplicateDouble
from tests.client.test_replicate import ENDPOINT, expect, quiet, tokens


async def _started(client: Client) -> TokenStream:
    stream = client.generate([2], max_tokens=400)
    assert (await anext(stream)).token == 3
    return stream


async def _break(client: Client) -> None:
    async for _ in client.generate([2], max_tokens=400):
        break


async def _aclose(client: Client) -> None:
    stream = await _started(client)
    await stream.aclose()
    assert [item async for item in stream] == []


async def _cancel(client: Client) -> None:
    stream = await _started(client)

    async def read() -> None:
        async for _ in stream:
            pass

    reading = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def _collect(client: Client) -> None:
    cycle = [await _started(client)]
    cycle.append(cycle)  # type: ignore[arg-type]
    del cycle
    gc.collect()


async def _close(client: Client) -> None:
    stream = await _started(client)
    client.close()
    with pytest.raises(TransportError, match="the client was closed"):
        async for _ in stream:
            pass
    with pytest.raises(TransportError, match="the client is closed"):
        client.generate([2])


@pytest.mark.parametrize("leave", [_break, _aclose, _cancel, _collect, _close])
async def test_leaving_cancels_the_prediction(replicate: ReplicateDouble, leave) -> None:
    replicate.engine._step_seconds = 0.005
    await asyncio.wait_for(leave(connect(ENDPOINT)), 20)
    await asyncio.to_thread(replicate.wait_for, lambda: replicate.cancelled == ["prediction0"])
    await quiet(replicate)


async def test_a_shared_prediction_goes_on_while_anyone_reads(replicate: ReplicateDouble) -> None:
    replicate.engine._step_seconds = 0.002
    client = connect(ENDPOINT)
    left = client.generate([2], max_tokens=400)
    kept = client.generate([2], max_tokens=40)
    await asyncio.gather(anext(left), anext(kept))
    left.close()
    assert len([item async for item in kept]) == 39
    await asyncio.to_thread(replicate.wait_for, lambda: replicate.cancelled == ["prediction0"])
    await quiet(replicate)


async def test_leaving_before_the_prediction_exists(replicate: ReplicateDouble) -> None:
    """While the create waits for its turn nothing has to be created at all."""
    replicate.faults.refusals.append((429, {"Retry-After": "100"}, ""))
    reading = asyncio.ensure_future(tokens(connect(ENDPOINT), 5))
    await asyncio.to_thread(replicate.wait_for, lambda: "POST /predictions" in replicate.requests)
    reading.cancel()
    await quiet(replicate)
    assert not replicate.predictions


async def test_leaving_before_the_model_was_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that does not answer holds up neither the next op nor the end of the process."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("REPLICATE_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("REPLICATE_API_TOKEN", "r8_secret")
        reading = asyncio.ensure_future(tokens(connect(ENDPOINT), 5))
        connection, _ = await asyncio.to_thread(silent.accept)
        reading.cancel()
        async with asyncio.timeout(FAREWELL_SECONDS - 1):
            while process_hub().running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.to_thread(close_process_hub)
        with connection:
            connection.settimeout(20)
            while connection.recv(65536):
                pass  # our side hung up: nothing of the request is left


async def test_leaving_during_a_cold_boot(replicate: ReplicateDouble) -> None:
    replicate.shut_down()
    reading = asyncio.ensure_future(tokens(connect(ENDPOINT), 5))
    await asyncio.to_thread(replicate.wait_for, lambda: bool(replicate.predictions))
    reading.cancel()
    await asyncio.to_thread(replicate.wait_for, lambda: replicate.cancelled == ["prediction0"])


def test_a_loop_that_ends_leaves_nothing(replicate: ReplicateDouble) -> None:
    replicate.engine._step_seconds = 0.005
    streams = []

    async def begin() -> None:
        streams.append(await _started(connect(ENDPOINT)))

    asyncio.run(begin())  # the stream is still referenced, its loop is closed
    replicate.wait_for(lambda: bool(replicate.predictions))
    streams.clear()
    replicate.wait_for(lambda: replicate.cancelled == ["prediction0"])


async def test_closing_the_hub_ends_everything(replicate: ReplicateDouble) -> None:
    replicate.engine._step_seconds = 0.005
    stream = await _started(connect(ENDPOINT))
    await asyncio.to_thread(close_process_hub)
    with pytest.raises(TransportError, match="was closed"):
        async for _ in stream:
            pass
    assert replicate.cancelled == ["prediction0"]
    await expect(connect(ENDPOINT))  # the next use makes a new one


@pytest.mark.slow
def test_the_end_of_a_process_cancels_its_predictions(replicate: ReplicateDouble) -> None:
    replicate.engine._step_seconds = 0.01
    code = """
import asyncio, lmtp_replicate
async def main():
    global stream
    stream = lmtp_replicate.connect("replicate:org/model").generate([2], max_tokens=400)
    await anext(stream)
asyncio.run(main())
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    replicate.wait_for(lambda: replicate.cancelled == ["prediction0"])


def _child(queue: multiprocessing.Queue) -> None:
    queue.put(asyncio.run(tokens(connect(ENDPOINT), 9)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_a_hub_of_its_own(replicate: ReplicateDouble) -> None:
    context = multiprocessing.get_context("fork")
    assert asyncio.run(tokens(connect(ENDPOINT), 5)) == [6, 7, 8, 9]
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue,), daemon=True)
    child.start()
    assert queue.get(timeout=30) == [10, 11, 12, 13]
    child.join(10)
    assert child.exitcode == 0
    assert asyncio.run(tokens(connect(ENDPOINT), 5)) == [6, 7, 8, 9]


def test_threads_and_tasks_stay_flat(replicate: ReplicateDouble) -> None:
    def use() -> None:
        asyncio.run(expect(connect(ENDPOINT)))

    use()
    asyncio.run(quiet(replicate))
    hub, before = process_hub(), threading.active_count()
    threads = [threading.Thread(target=use) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    asyncio.run(quiet(replicate))
    assert process_hub() is hub
    assert threading.active_count() == before
    assert len(asyncio.all_tasks(hub._loop)) == 0
    assert not hub.running


async def test_what_is_asked_while_the_hub_ends_fails(replicate: ReplicateDouble) -> None:
    """Its loop may be closed before the burst leaves, or it has only said farewell."""
    hub = process_hub()
    client = connect(ENDPOINT)
    reading = asyncio.ensure_future(tokens(client, 2))
    await asyncio.sleep(0)  # it has asked
    close_process_hub()
    with pytest.raises(TransportError, match="the client was closed"):
        await asyncio.wait_for(reading, 20)
    hub.leave(1)  # a stream of another thread

    hub = process_hub()
    client = connect(ENDPOINT)
    asyncio.run_coroutine_threadsafe(hub._farewell(), hub._loop).result(20)
    with pytest.raises(TransportError, match="the client was closed"):
        await asyncio.wait_for(tokens(client, 2), 20)
    assert not replicate.requests
