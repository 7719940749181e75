"""When a query is over, what it had open ends on the server, though LMQL closes nothing.

The server is slow here, so that a stream that nobody ends would be seen to run on.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import lmql
import pytest

import lmtp_replicate  # noqa: F401 - the plug-in
from tests.client.replicate_double import ReplicateDouble
from tests.client.test_replicate import quiet
from tests.lmql.holding import Hold


@pytest.fixture(autouse=True)
def _slow(replicate: ReplicateDouble) -> None:
    replicate.engine._step_seconds = 0.05


# LMQL sees no more than "d" is wanted, and has asked for up to 128 tokens.
QUERY = 'argmax "ab[X]" where STOPS_AT(X, "d")'


def wait_until_cancelled(replicate: ReplicateDouble) -> None:
    first = replicate.predictions[0]
    replicate.wait_for(lambda: first.id in replicate.cancelled)
    assert len("".join(first.output).splitlines()) < 40  # not run on to the end


def test_a_synchronous_query(replicate: ReplicateDouble, tokenizer: str) -> None:
    """Its loop stands still afterwards, so nothing that LMQL cancels gets to know."""
    model = lmql.model("replicate:org/model", tokenizer=tokenizer)
    assert lmql.run_sync(QUERY, model=model).variables["X"] == "cd"
    wait_until_cancelled(replicate)


async def test_an_asynchronous_query(replicate: ReplicateDouble, tokenizer: str) -> None:
    model = lmql.model("replicate:org/model", tokenizer=tokenizer)
    assert (await lmql.run(QUERY, model=model)).variables["X"] == "cd"
    await asyncio.to_thread(wait_until_cancelled, replicate)


async def test_a_cancelled_query(replicate: ReplicateDouble, tokenizer: str) -> None:
    model = lmql.model("replicate:org/model", tokenizer=tokenizer)
    running = asyncio.ensure_future(
        lmql.run('argmax "ab[X]" where len(TOKENS(X)) < 100', model=model)
    )
    await asyncio.to_thread(
        replicate.wait_for, lambda: "GET /streams/prediction0" in replicate.requests
    )
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    del running
    await asyncio.to_thread(wait_until_cancelled, replicate)


def test_a_query_whose_own_code_fails(replicate: ReplicateDouble, tokenizer: str) -> None:
    """LMQL does not even close the model then."""
    model = lmql.model("replicate:org/model", tokenizer=tokenizer)

    @lmql.query(model=model)
    def query():
        """lmql
        argmax
            "ab[X]" where STOPS_AT(X, "d")
            1 / 0
        """

    with pytest.raises(ZeroDivisionError):
        query()
    wait_until_cancelled(replicate)
    assert lmql.run_sync(QUERY, model=model).variables["X"] == "cd"


PROGRAM = """
import asyncio, signal, sys
import lmql, lmtp_replicate

# As in a terminal: what is started in the background of a script inherits that Ctrl-C is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

model = lmql.model("replicate:org/model", tokenizer=sys.argv[1])
query = 'sample(n=2) "ab[X]" where STOPS_AT(X, "?") and len(TOKENS(X)) < 400'
"""


@contextmanager
def program_at_work(
    replicate: ReplicateDouble, code: str, tokenizer: str
) -> Iterator[subprocess.Popen[str]]:
    """A process whose query the model is in the middle of; afterwards nothing of it may be left."""
    held = Hold(replicate.engine, "m")
    program = subprocess.Popen(
        [sys.executable, "-c", code, tokenizer],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert held.reached.wait(60)
        yield program
    finally:
        held.go_on.set()
        program.kill()
        program.wait()
    asyncio.run(quiet(replicate))


@pytest.mark.slow
@pytest.mark.parametrize(
    "run",
    [
        "lmql.run_sync(query, model=model)",
        "asyncio.run(lmql.run(query, model=model))",
    ],
)
def test_ctrl_c(replicate: ReplicateDouble, tokenizer: str, run: str) -> None:
    with program_at_work(replicate, PROGRAM + run, tokenizer) as program:
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=30)
        assert "KeyboardInterrupt" in errors
        wait_until_cancelled(replicate)


@pytest.mark.slow
def test_a_program_that_ends_in_the_middle_of_a_query(
    replicate: ReplicateDouble, tokenizer: str
) -> None:
    end = """
async def main():
    asking = asyncio.ensure_future(lmql.run(query, model=model))
    await asyncio.to_thread(sys.stdin.readline)
    sys.exit(3)

asyncio.run(main())
"""
    with program_at_work(replicate, PROGRAM + end, tokenizer) as program:
        program.communicate("now\n", timeout=30)
        assert program.returncode == 3
        wait_until_cancelled(replicate)
