"""Queries of unmodified LMQL 0.7.3, each in a process of its own, over the websocket server."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

import pytest

from lmtp_replicate.serving.websocket_server import WebSocketServer
from tests.scripted_engine import ScriptedEngine
from tests.serving.letters import save_letters
from tests.serving.stepwise_engine import StepwiseEngine
from tests.upstream import SCRIPT

pytestmark = pytest.mark.slow

TO_FAIL_NOT_HANG = 90.0


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_letters(tmp_path_factory.mktemp("letters"))


async def start(query: str, server: WebSocketServer, letters: Path) -> Process:
    endpoint = f"127.0.0.1:{server.port}"
    source = f'lmql.model("scripted", endpoint="{endpoint}", tokenizer="{letters}")'
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SCRIPT), stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    assert process.stdin is not None
    process.stdin.write(query.replace("MODEL", source).encode())
    process.stdin.close()
    return process


async def finish(process: Process) -> tuple[str, str]:
    """What the process printed; it is killed rather than waited for without end."""
    try:
        out, err = await asyncio.wait_for(process.communicate(), TO_FAIL_NOT_HANG)
    finally:
        if process.returncode is None:
            process.kill()
    return out.decode(), err.decode()


async def variables(query: str, server: WebSocketServer, letters: Path) -> dict[str, Any]:
    out, err = await finish(await start(query, server, letters))
    assert out.strip(), err
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found


async def test_a_query_with_masks_and_scores(engine: ScriptedEngine, letters: Path) -> None:
    """The scripted model counts: after "a" comes "b"."""
    query = """
argmax
    "Count: a[X] or x[Y]"
from MODEL
where len(TOKENS(X)) < 6
distribution Y in ["yz", "ya"]
"""
    async with WebSocketServer(engine) as server:
        found = await variables(query, server, letters)
    assert found["X"] == "bcdef"
    (best, _), (other, _) = sorted(found["P(Y)"], key=lambda pair: -pair[1])
    assert (best, other) == ("yz", "ya")


async def test_a_query_ends_with_the_reason_when_the_engine_fails_in_mid_stream(
    stepwise: StepwiseEngine, letters: Path
) -> None:
    """An error after the fourth token would make LMQL wait for ever (LMQL issue 272)."""
    query = """
argmax
    "Count: a[X]"
from MODEL
where len(TOKENS(X)) < 40
"""
    async with WebSocketServer(stepwise) as server:
        process = await start(query, server, letters)
        stepwise.allow(7)
        await asyncio.to_thread(stepwise.wait_until_made, 7, TO_FAIL_NOT_HANG)
        stepwise.crash("out of memory")
        out, err = await finish(process)
    assert process.returncode != 0
    assert "out of memory" in out + err
