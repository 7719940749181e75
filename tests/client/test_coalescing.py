"""Ops of several bursts, loops and clients share predictions, and each still ends by itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from lmtp_replicate.client import connect
from lmtp_replicate.client.hub import Hub, process_hub
from lmtp_replicate.errors import StreamError
from lmtp_replicate.protocol.limits import Limits
from tests.client.replicate_double import ReplicateDouble
from tests.client.test_replicate import ENDPOINT, creates, expect, heard, quiet, tokens, until


@contextmanager
def stopped(hub: Hub) -> Iterator[None]:
    """While the hub's thread does nothing, so that all that is asked for meanwhile arrives in one
    iteration of its loop."""
    go_on, stands = threading.Event(), threading.Event()
    hub._loop.call_soon_threadsafe(lambda: (stands.set(), go_on.wait(20)))
    assert stands.wait(20)
    try:
        yield
    finally:
        go_on.set()


class Users:
    """Programs' threads, each with a loop and a client of its own."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self.failures: list[BaseException] = []

    def ask(self, start: int, endpoint: str = ENDPOINT) -> None:
        """Ask for four tokens, in a thread of its own, and check them."""

        def use() -> None:
            try:
                asyncio.run(expect(connect(endpoint), start))
            except BaseException as error:
                self.failures.append(error)

        self._threads.append(threading.Thread(target=use))
        self._threads[-1].start()

    def wait(self) -> None:
        for thread in self._threads:
            thread.join(30)
        assert not self.failures


def posts(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Waits until that many bursts were handed to the hub."""
    count, changed = 0, threading.Condition()
    post = Hub.post

    def counting(self: Hub, *arguments: object) -> None:
        nonlocal count
        post(self, *arguments)  # type: ignore[arg-type]
        with changed:
            count += 1
            changed.notify_all()

    def wait(number: int) -> None:
        with changed:
            assert changed.wait_for(lambda: count >= number, 20)

    monkeypatch.setattr(Hub, "post", counting)
    return wait


async def let_pass(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the hub so much time passes at once, as soon as it has nothing to do but wait; and what
    is then due is done."""
    loop = process_hub()._loop
    clock = loop.time
    await heard()
    monkeypatch.setattr(loop, "time", lambda: clock() + seconds)
    await heard()


def test_loops_that_ask_at_the_same_time_share_a_prediction(
    replicate: ReplicateDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, users = posts(monkeypatch), Users()
    with stopped(process_hub()):
        for start in range(8):
            users.ask(20 + start)
        wait(8)
    users.wait()
    assert replicate.ops == [["MODEL_INFO", *["GENERATE"] * 8]]


def test_without_coalescing_each_burst_is_a_prediction(
    replicate: ReplicateDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, users = posts(monkeypatch), Users()
    with stopped(process_hub()):
        for start in range(3):
            users.ask(20 + start, f"{ENDPOINT}?coalesce=off")
        wait(3)
    users.wait()
    assert sorted(map(len, replicate.ops)) == [1, 1, 2]


async def test_while_others_are_in_flight_ops_wait_for_company(
    replicate: ReplicateDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmtp_replicate.client.pace.Pace.window", 10.0)
    wait = posts(monkeypatch)
    replicate.engine.gate.clear()
    client = connect(ENDPOINT)
    first = asyncio.ensure_future(expect(client, 5))
    await asyncio.to_thread(replicate.wait_for, lambda: bool(replicate.predictions))
    others = []
    for number, start in enumerate((9, 20, 30), 2):
        others.append(asyncio.ensure_future(expect(client, start)))
        await asyncio.to_thread(wait, number)  # a burst of its own
    await let_pass(11, monkeypatch)
    await asyncio.to_thread(replicate.wait_for, lambda: len(replicate.predictions) > 1)
    replicate.engine.gate.set()
    await asyncio.gather(first, *others)
    assert replicate.ops == [["MODEL_INFO", "GENERATE"], ["GENERATE"] * 3]


async def test_an_idle_endpoint_lets_nothing_wait(
    replicate: ReplicateDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmtp_replicate.client.pace.Pace.window", 3600.0)
    client = connect(ENDPOINT)
    await expect(client, 5)
    await expect(client, 20)
    assert creates(replicate) == 2


async def test_what_is_asked_for_during_a_refusal_joins(
    replicate: ReplicateDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = posts(monkeypatch)
    replicate.faults.refusals.append((429, {"Retry-After": "60"}, ""))
    client = connect(ENDPOINT)
    asking = [asyncio.ensure_future(expect(client, 5))]
    await until(lambda: client.stats.retries == 1)
    asking += [
        asyncio.ensure_future(expect(c, n)) for c, n in ((client, 9), (connect(ENDPOINT), 20))
    ]
    await asyncio.to_thread(wait, 2)  # two bursts: these two are of one loop
    await let_pass(70, monkeypatch)
    await asyncio.gather(*asking)
    assert replicate.ops == [["MODEL_INFO", *["GENERATE"] * 3]]
    assert client.stats.creates_delayed == 1


async def test_what_waits_for_company_is_not_sent_into_a_refusal(
    replicate: ReplicateDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its create was granted before the first one's refusal came."""
    monkeypatch.setattr("lmtp_replicate.client.pace.Pace.window", 10.0)
    wait = posts(monkeypatch)
    replicate.faults.refusals.append((429, {"Retry-After": "60"}, ""))
    replicate.faults.refuse.clear()
    client = connect(ENDPOINT)
    asking = [asyncio.ensure_future(expect(client, 5))]
    await asyncio.to_thread(replicate.wait_for, lambda: creates(replicate) == 1)
    asking.append(asyncio.ensure_future(expect(client, 9)))
    await asyncio.to_thread(wait, 2)
    await heard()  # its create is granted
    replicate.faults.refuse.set()
    await until(lambda: client.stats.retries == 1)
    await let_pass(11, monkeypatch)
    assert creates(replicate) == 1
    await let_pass(70, monkeypatch)
    await asyncio.gather(*asking)
    assert client.stats.creates_delayed == 1
    assert creates(replicate) == 2
    assert replicate.ops == [["MODEL_INFO", *["GENERATE"] * 2]]


async def test_too_many_bytes_are_several_predictions(
    replicate: ReplicateDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of one burst; and what is too large for any of them fails alone."""
    few = Limits(message_bytes=20_000)
    monkeypatch.setattr("lmtp_replicate.protocol.batch_size.LIMITS", few)
    monkeypatch.setattr("lmtp_replicate.client.replicate.LIMITS", few)
    client = connect(ENDPOINT)

    async def ask(prompt: list[int]) -> list[int]:
        return [item.token async for item in client.generate(prompt, max_tokens=2)]

    answers = await asyncio.gather(
        *(ask([5] * 400) for _ in range(8)), ask([63] * 10_000), return_exceptions=True
    )
    assert answers[:8] == [[6, 7]] * 8
    assert isinstance(answers[8], StreamError)
    assert "too large" in str(answers[8])
    await quiet(replicate)


async def test_a_thousand_ops_and_the_introduction_fit(replicate: ReplicateDouble) -> None:
    client = connect(f"{ENDPOINT}?join=off")
    answers = await asyncio.gather(*(tokens(client, 5, 1) for _ in range(1030)))
    assert answers == [[6]] * 1030
    assert [len(ops) for ops in replicate.ops] == [1024, 7]


async def test_a_batch_that_everybody_left_is_not_created(replicate: ReplicateDouble) -> None:
    replicate.faults.refusals.append((429, {"Retry-After": "100"}, ""))
    readers = [asyncio.ensure_future(tokens(connect(ENDPOINT), start)) for start in (5, 9)]
    await asyncio.to_thread(replicate.wait_for, lambda: creates(replicate) == 1)
    for reader in readers:
        reader.cancel()
    await quiet(replicate)
    assert creates(replicate) == 1
