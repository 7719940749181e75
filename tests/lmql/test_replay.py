"""Real LMQL queries are recorded, and replayed by the benchmark: the same ops come again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmql
import pytest

import lmtp_replicate  # noqa: F401 - the plug-in
from benchmarks import replay
from benchmarks.result import Result
from lmtp_replicate.client.hub import close_process_hub
from lmtp_replicate.client.trace_file import VARIABLE
from lmtp_replicate.serving.websocket_server import WebSocketServer
from tests.client.replicate_double import ReplicateDouble
from tests.gateway_thread import GatewayThread
from tests.lmql.alphabet import AlphabetEngine

ENDPOINT = "replicate:local/alphabet"
QUERIES = {
    "one after another": ['argmax "ab[X]?cd[Y]" where len(TOKENS(X)) < 4 and len(TOKENS(Y)) < 5'],
    "whitelists": ['argmax "abc:[X] a:[Y]" where X in [" no", " yes"] and Y in [" no", " yes"]'],
    "a distribution": [
        'argmax "ab[X] abc:[Y]" where len(TOKENS(X)) < 4 distribution Y in [" yes", " no"]'
    ],
    "beams, scores and memory": [
        'beam(n=2) "abc:[X] no:[Y]" where X in [" no", " yes", " maybe"] and Y in [" no", " yes"]'
    ],
    "samples": ['sample(n=2, temperature=0.8) "ab[X]" where len(TOKENS(X)) < 5'],
    "in parallel": [
        f'argmax "{start}[X]?[Y]" where len(TOKENS(X)) < 4 and len(TOKENS(Y)) < 3'
        for start in "agm"
    ],
}
COMPARED = ("kind", "prompt", "scored", "max_tokens", "temperature", "top_logprobs", "mask")


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    close_process_hub()  # a hub reads the variable when it is made
    monkeypatch.setenv(VARIABLE, str(tmp_path / "trace.jsonl"))
    yield tmp_path / "trace.jsonl"
    close_process_hub()


def structure(path: Path) -> dict[str, dict[str, Any]]:
    """The ops of a trace with what they share and depend on; an op is named by its query and its
    place there, since the order of parallel queries is free."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    ops = [line for line in lines if line["event"] == "op"]
    ends = {line["op"]: line for line in lines if line["event"] == "end"}
    queries: dict[int, list[int]] = {}
    for op in ops:
        queries.setdefault(op["query"], []).append(op["op"])
    names = {
        number: f"query {query}, op {place}"
        for query, numbers in enumerate(queries.values())
        for place, number in enumerate(numbers)
    }
    return {
        names[op["op"]]: {name: op.get(name) for name in COMPARED}
        | {name: _renamed(op.get(name), names) for name in ("shares", "after")}
        | {"tokens": ends[op["op"]]["tokens"]}
        for op in ops
    }


def _renamed(facts: dict[str, Any] | None, names: dict[int, str]) -> dict[str, Any] | None:
    """Without times."""
    return facts and {**facts, "op": names[facts["op"]], "seconds": None}


def record(model: lmql.LLM, queries: list[str]) -> None:
    async def run() -> None:
        await asyncio.gather(*(lmql.run(query, model=model) for query in queries))

    asyncio.run(run())
    close_process_hub()


@pytest.mark.parametrize("name", QUERIES)
def test_a_replay_asks_for_the_same_ops(
    gateway: GatewayThread,
    tokenizer: str,
    trace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    record(lmql.model(ENDPOINT, tokenizer=tokenizer), QUERIES[name])
    again = trace.with_name("again.jsonl")
    monkeypatch.setenv(VARIABLE, str(again))
    assert replay.main([str(trace), "--endpoint", ENDPOINT]) == 0
    close_process_hub()
    assert structure(again) == structure(trace)
    result = Result.load(trace.with_suffix(".replay.json"))
    recorded, replayed = (each.figures for each in result.measurements)
    for figure in ("ops", "tokens"):
        assert recorded[figure] == replayed[figure] > 0
    if name == "in parallel":  # what meets in a prediction is a matter of milliseconds
        assert 0 < replayed["predictions"] < replayed["ops"]
    else:
        assert recorded["predictions"] == replayed["predictions"] > 0
    assert replayed["failed_ops"] == 0
    assert "| replayed |" in capsys.readouterr().out


async def test_a_trace_is_replayed_over_a_websocket(
    gateway: GatewayThread, tokenizer: str, trace: Path, tmp_path: Path
) -> None:
    model = lmql.model(ENDPOINT, tokenizer=tokenizer)
    await asyncio.to_thread(record, model, QUERIES["one after another"])
    output, engine = tmp_path / "result.json", AlphabetEngine()
    async with WebSocketServer(engine) as server:
        options = ["--endpoint", f"127.0.0.1:{server.port}", "--output", str(output)]
        options += ["--rounds", "2", "--run", json.loads(trace.read_text().splitlines()[0])["run"]]
        assert await asyncio.to_thread(replay.main, [str(trace), *options]) == 0
        await asyncio.to_thread(close_process_hub)
    engine.close()
    recorded, *replayed = (each.figures for each in Result.load(output).measurements)
    assert [each["ops"] for each in replayed] == [recorded["ops"]] * 2
    assert [each["predictions"] for each in replayed] == [0, 0]
    assert [each["tokens"] for each in replayed] == [recorded["tokens"]] * 2


def test_what_a_query_left_is_left_again(
    replicate: ReplicateDouble, tokenizer: str, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicate.engine._step_seconds = 0.02
    model = lmql.model("replicate:org/model", tokenizer=tokenizer)
    record(model, ['argmax "ab[X]" where STOPS_AT(X, "d") and len(TOKENS(X)) < 400'])
    again = trace.with_name("again.jsonl")
    monkeypatch.setenv(VARIABLE, str(again))
    assert replay.main([str(trace), "--endpoint", "replicate:org/model"]) == 0
    close_process_hub()
    (was,), (now,) = (
        [line for line in map(json.loads, path.read_text().splitlines()) if line["event"] == "end"]
        for path in (trace, again)
    )
    assert was["how"] == now["how"] == "left"
    assert was["tokens"] <= now["tokens"] < 399
    assert not replicate.live


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "no op"), ("{}\n", "line 1"), ('{"event":"op","run":"1"}\n', "line 1")],
)
def test_what_is_no_trace_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(text)
    assert replay.main([str(path), "--endpoint", "127.0.0.1:1"]) == 1
    assert said in capsys.readouterr().err
