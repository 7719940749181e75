"""When a query is over, however it ended, nothing of it is left: no prediction and no stream in the
engine; and after a thousand queries there is no more of anything than after ten."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import lmql
import psutil
import pytest

from benchmarks.queries import QUERIES, Query
from benchmarks.rote.engine import JOURNAL
from tests.gateway_thread import GatewayThread
from tests.traffic.asking import PATIENCE, ask, model

MANY = 199
"""Tokens that the mission's query asks for, and the slow model makes in ten seconds."""
FEW = 100
FIVE = (
    *(f'argmax "The sky{mark}[X]" where len(TOKENS(X)) < 4' for mark in (" is", "?", "!")),
    'argmax "The sky is[X]" where X in [" red", " light blue"]',
    'argmax "The hotel[X] was[Y]" where len(TOKENS(X)) < 3 distribution Y in [" old", " new"]',
)
_PATIENCE = 30


class Journal:
    """What the engine of a work directory has written since."""

    def __init__(self, work: Path) -> None:
        self._file = work / JOURNAL
        self._start = 0
        self.wait_until_idle()  # an earlier query's cancels may still be on their way
        self._start = len(self._text())

    def lines(self) -> list[str]:
        return self._text()[self._start :].splitlines()

    def _text(self) -> str:
        return self._file.read_text() if self._file.exists() else ""

    @property
    def begun(self) -> int:
        return self.lines().count("begin")

    @property
    def tokens(self) -> list[int]:
        """Of each stream that is over."""
        return [int(line.split()[1]) for line in self.lines() if line.startswith("end")]

    def wait_for(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not true():
            assert time.monotonic() < deadline, self.lines()
            time.sleep(0.01)

    def wait_until_idle(self) -> None:
        """Until no stream is open."""
        self.wait_for(lambda: self.begun == len(self.tokens))


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.name)
def test_a_query_leaves_nothing_behind(query: Query, gateway: GatewayThread, work: Path) -> None:
    journal = Journal(work / "rote")
    ask(query, model())
    gateway.wait_until_quiet()
    journal.wait_until_idle()
    assert journal.begun


def test_what_a_query_no_longer_needs_is_not_generated(gateway: GatewayThread, work: Path) -> None:
    journal = Journal(work / "slow")
    [mission] = (query for query in QUERIES if query.name == "mission")
    ask(mission, model("slow"))
    gateway.wait_until_quiet()
    journal.wait_until_idle()
    assert 0 < max(journal.tokens) < FEW


def test_a_query_that_fails(gateway: GatewayThread, work: Path) -> None:
    journal = Journal(work / "slow")
    failing = Query(
        "failing",
        (
            'argmax\n    "Review: We had[TEXT]"\n    1 / 0\nwhere\n    '
            f'STOPS_AT(TEXT, "stay") and len(TOKENS(TEXT)) < {MANY}\n',
        ),
    )
    with pytest.raises(ZeroDivisionError):
        ask(failing, model("slow"))
    gateway.wait_until_quiet()
    journal.wait_until_idle()
    assert 0 < max(journal.tokens) < FEW


async def test_a_query_that_is_interrupted(gateway: GatewayThread, work: Path) -> None:
    journal = Journal(work / "slow")
    code = f'argmax "Review: We had[TEXT]" where len(TOKENS(TEXT)) < {MANY}'
    running = asyncio.ensure_future(lmql.run(code, model=model("slow")))
    await asyncio.to_thread(journal.wait_for, lambda: journal.begun > 0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.to_thread(gateway.wait_until_quiet)
    await asyncio.to_thread(journal.wait_until_idle)
    assert max(journal.tokens) < FEW


@pytest.mark.slow
def test_a_thousand_queries_hold_no_more_than_ten(gateway: GatewayThread, work: Path) -> None:
    journal = Journal(work / "rote")
    # From memory most answers come at once; without, from the server.
    llms = [model(), model(settings="?memory=off")]
    queries = [lmql.query(code) for code in FIVE]

    async def five(llm: lmql.LLM) -> None:
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(query(model=llm) for query in queries))

    def run(count: int) -> None:
        """Loops of their own, as programs have them, with some queries each."""
        for number in range(count // len(FIVE)):
            asyncio.run(five(llms[number % 2]))
        gateway.wait_until_quiet()

    run(10)
    after_ten = held()
    run(990)
    deadline = time.monotonic() + PATIENCE  # idle connections are kept for a while
    while not (now := held()) <= after_ten and time.monotonic() < deadline:
        time.sleep(0.5)
    assert now <= after_ten
    assert journal.begun > 700


def held() -> Counter[str]:
    """What this process, gateway included, holds, by kind."""
    gc.collect()
    process = psutil.Process()
    tasks = [each for each in gc.get_objects() if type(each) is asyncio.Task]
    return Counter(
        {
            "tasks": sum(not task.done() for task in tasks),
            "sockets": len(process.net_connections()),
            "files": process.num_fds(),
            **Counter(f"thread {thread.name}" for thread in threading.enumerate()),
        }
    )
