"""The trace: what happened, and nothing of what was said."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from lmtp_replicate.client import connect
from lmtp_replicate.client.hub import close_process_hub
from lmtp_replicate.client.trace_file import VARIABLE, TraceFile
from lmtp_replicate.errors import PredictionError
from tests.client.replicate_double import TOKEN, ReplicateDouble
from tests.client.test_replicate import ENDPOINT, expect, quiet, tokens

TIMES = ("t", "first", "last", "run", "seconds")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "trace.jsonl"))
    return tmp_path / "trace.jsonl"


def lines(path: Path, event: str | None = None) -> list[dict[str, Any]]:
    """The lines of a trace, or those of one event."""
    read = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in read if event in (None, line["event"])]


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key not in TIMES}
    return value


async def chain(prompt: list[int], count: int = 4) -> None:
    """An op, and one that goes on from three of its tokens and two others."""
    client = connect(ENDPOINT)
    stream = client.generate(prompt, max_tokens=count)
    output = [item.token async for item in stream]
    longer = [*prompt, *output[:3], 40, 41]
    stream = client.generate(longer, max_tokens=2, logit_bias={50: -100, 51: -100}, seed=7)
    assert len([item async for item in stream]) == 2


async def test_ops_and_what_they_depend_on(replicate: ReplicateDouble, path: Path) -> None:
    await chain([5, 6])
    await quiet(replicate)
    close_process_hub()
    first, second = lines(path, "op")
    assert first["kind"] == "GENERATE"
    assert (first["prompt"], first["max_tokens"], first["temperature"]) == (2, 4, 0.0)
    assert not {"shares", "after", "mask", "seed"} & first.keys()
    assert second["query"] == first["query"]
    assert (second["prompt"], second["seed"]) == (7, 7)
    assert second["shares"] == {"op": first["op"], "tokens": 5, "output": 3}
    assert without_times(second["after"]) == {"op": first["op"], "tokens": 4, "end": True}
    assert second["mask"] == {"number": 1, "deny": 2, "add": 0}
    assert first["t"] < second["t"]
    ends = lines(path, "end")
    assert [(end["op"], end["tokens"], end["how"]) for end in ends] == [
        (first["op"], 4, "length"),
        (second["op"], 2, "length"),
    ]
    assert all(end["first"] <= end["last"] <= end["t"] for end in ends)
    created, finished = lines(path, "prediction"), lines(path, "prediction_end")
    assert [line["ops"] for line in created] == [[first["op"]], [second["op"]]]
    assert [line["how"] for line in finished] == ["succeeded"] * 2


async def test_ops_asked_for_at_once_are_one_burst_of_several_queries(
    replicate: ReplicateDouble, path: Path
) -> None:
    clients = [connect(ENDPOINT) for _ in range(3)]
    await asyncio.gather(*(expect(client, 5 + n) for n, client in enumerate(clients)))
    close_process_hub()
    ops = lines(path, "op")
    assert len({op["burst"] for op in ops}) == 1
    assert len({op["query"] for op in ops}) == 3
    (prediction,) = lines(path, "prediction")
    assert prediction["ops"] == [op["op"] for op in ops]


async def test_what_was_not_asked_and_what_was_left(replicate: ReplicateDouble, path: Path) -> None:
    client = connect(ENDPOINT)
    await asyncio.gather(expect(client, 5), expect(client, 5))
    for _ in range(2):
        assert len([item async for item in client.score([9], [10])]) == 1
    replicate.engine._step_seconds = 0.002
    stream = client.generate([2], max_tokens=400)
    await anext(stream)
    stream.close()
    await quiet(replicate)
    close_process_hub()
    ends = lines(path, "end")
    assert [end["source"] for end in ends] == ["server", "joined", "server", "memory", "server"]
    assert ends[-1]["how"] == "left"
    assert lines(path, "prediction_end")[-1]["how"] == "canceled"


@pytest.mark.usefixtures("patient")
async def test_neither_prompts_nor_tokens_nor_secrets_are_written(
    replicate: ReplicateDouble, path: Path
) -> None:
    """The same traffic about other tokens leaves the same lines, but for the times."""
    recorded = []
    for prompt in ([25, 26], [30, 31]):
        await chain(prompt)
        await quiet(replicate)
        close_process_hub()
        # Sorted: a prediction may end before or after the next op is asked for.
        recorded.append(
            sorted(json.dumps({**without_times(line), "query": 0}) for line in lines(path))
        )
        path.unlink()
    assert recorded[0] == recorded[1]
    replicate.faults.failure = "no token 987654"
    with pytest.raises(PredictionError, match="987654"):
        await tokens(connect(ENDPOINT), 61, 3)
    close_process_hub()
    assert lines(path, "end")[-1]["how"] == "PredictionError"
    assert "987654" not in path.read_text()
    assert TOKEN not in path.read_text()


@pytest.mark.parametrize("name", ["/dev/full", "missing/trace.jsonl"])
async def test_a_file_that_cannot_be_written_is_warned_of_once(
    replicate: ReplicateDouble,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / name))
    client = connect(ENDPOINT)
    for start in (5, 20, 40):
        await expect(client, start)
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert name in warnings[0]
    assert VARIABLE in warnings[0]


def _write(path: Path, count: int) -> None:
    file = TraceFile(str(path))
    for number in range(count):
        file.write("op", {"op": number, "ops": list(range(number % 300))})
    file.close()


def test_several_processes_write_whole_lines(tmp_path: Path) -> None:
    path, count = tmp_path / "trace.jsonl", 500
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(path, count)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    by_run: dict[str, list[int]] = {}
    for line in lines(path):
        by_run.setdefault(line["run"], []).append(line["op"])
    assert list(by_run.values()) == [list(range(count))] * 3


async def test_nothing_is_written_unless_asked(
    replicate: ReplicateDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    await expect(connect(ENDPOINT))
    assert list(tmp_path.iterdir()) == []
