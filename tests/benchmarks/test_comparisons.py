"""The commands, on a tiny model: real servers, real workers, the correctness guard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bound, engine, gpu, interference, lmql_shaped, memory
from benchmarks.agreement import Answer, Oracle
from benchmarks.command import Command
from benchmarks.model import TINY, make
from benchmarks.result import Result
from benchmarks.rounds import Rounds
from benchmarks.sides.side import Batch, Side
from benchmarks.sides.worker import WorkerSide
from benchmarks.workload import Mask, Request

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.getbasetemp() / "benchmark-cache"
    for module in ("model", "command", "gpu", "environments"):
        monkeypatch.setattr(f"benchmarks.{module}.CACHE", folder)
    monkeypatch.setattr("benchmarks.command.RESULTS", folder / "results")


def test_engine_and_its_correctness_guard(tmp_path: Path) -> None:
    output = tmp_path / "engine.json"
    options = ["--quick", "--rounds", "2", "--streams", "2", "--sides", "ours,packed-floor"]
    assert engine.main([*options, "--output", str(output)]) == 0
    result = Result.load(output)
    assert result.sides() == ["ours", "packed-floor"]
    rounds = [(each.round, each.side) for each in result.measurements]
    assert rounds == [(0, "ours"), (0, "packed-floor"), (1, "ours"), (1, "packed-floor")]
    assert all(each.figures["tokens"] == 24 for each in result.measurements)
    assert {found.wrong for found in result.agreement.values()} == {0}
    assert {found.tokens for found in result.agreement.values()} == {24}
    assert result.not_run["upstream"] == "left out by --sides"
    assert "--peer vllm" in result.not_run["vllm"]


def test_no_engine_beats_the_linear_layers_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert bound.main(["--quick", "--rounds", "2"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [int(row[0]) for row in rows] == [1, 8, 32]
    # 8 streams: 32 prompts of 320 tokens on average, and 32 * 64 tokens, 8 a step.
    taken = 32 * 320 * 0.001 + 32 * 64 / 8 * 0.02
    assert bound.tokens_per_second(8, 0.02, 0.001) == pytest.approx(32 * 64 / taken)


def test_lmql_shaped_with_upstream(tmp_path: Path) -> None:
    output = tmp_path / "lmql.json"
    options = ["--quick", "--rounds", "1", "--sides", "ours,upstream,floor"]
    assert lmql_shaped.main([*options, "--output", str(output)]) == 0
    result = Result.load(output)
    assert result.cases() == [*lmql_shaped.CHAINS, *lmql_shaped.FAN_OUTS]
    for side in ("ours", "upstream", "floor"):
        found = result.agreement[side]
        assert (found.tokens, found.wrong) == (12, 0)
        assert (found.scores, found.wrong_scores) == (36, 0)


def test_interference(tmp_path: Path) -> None:
    output = tmp_path / "interference.json"
    options = ["--quick", "--rounds", "1", "--sides", "ours", "--output", str(output)]
    assert interference.main(options) == 0
    arrival, long_prompt = Result.load(output).measurements
    assert arrival.figures["allowed_s"] > arrival.figures["prefill_alone_s"] > 0
    assert long_prompt.figures["itl_p95_ratio"] > 0
    assert long_prompt.figures["still_running"] == 1


def test_memory(tmp_path: Path) -> None:
    output = tmp_path / "memory.json"
    assert memory.main(["--quick", "--sides", "ours", "--output", str(output)]) == 0
    (measured,) = Result.load(output).measurements
    assert measured.figures["kv_bytes_per_token"] == 2 * 2 * 1 * 64 * 4
    assert measured.figures["load_peak_bytes"] > measured.figures["before_anonymous_bytes"] > 0


def test_gpu_without_a_gpu_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    output = tmp_path / "gpu.json"
    assert gpu.main(["--output", str(output)]) == 1
    assert set(json.loads(output.read_text())["not_run"]) == set(gpu.SIDES)
    assert "NOT RUN" in capsys.readouterr().err


async def test_gpu_measures_every_case_when_it_is_warm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, but for what is asked of the GPU itself."""
    monkeypatch.setattr(gpu, "memory_bandwidth", lambda: 1e9)
    monkeypatch.setattr(gpu, "_roomy_device", lambda _: "cpu")
    asked: list[tuple[str, object]] = []
    measure = gpu.GpuWork.measure

    async def watched(self: gpu.GpuWork, side: Any, case: str, number: object) -> Any:
        asked.append((case, number))
        return await measure(self, side, case, number)

    monkeypatch.setattr(gpu.GpuWork, "measure", watched)
    output = tmp_path / "gpu.json"
    command = Command("gpu", "", gpu.SIDES, rounds=1)
    options = command.read(["--quick", "--sides", "ours 4bit graphs", "--output", str(output)])
    options.dtype = "bfloat16"
    await gpu.compare(command, TINY)
    assert asked == [(case, number) for number in ("warm-up", 0) for case in gpu.CASES]
    alone, *_ = Result.load(output).measurements
    assert alone.figures["share_of_floor"] > 0


def test_the_guard_tells_wrong_tokens_from_right_ones() -> None:
    oracle = Oracle(make(TINY))
    prompt = (5, 9, 77, 30)
    wrong = {
        token: oracle.check([Answer(prompt, (token,))]).wrong for token in range(TINY.vocabulary)
    }
    (right,) = [token for token, is_wrong in wrong.items() if not is_wrong]
    other = (right + 1) % TINY.vocabulary
    only_other = Mask((other,), is_whitelist=True)
    assert oracle.check([Answer(prompt, (other,), (only_other,))]).wrong == 0
    assert oracle.check([Answer(prompt, (right,), (Mask((right,), False),))]).wrong == 1
    found = Oracle(make(TINY), tolerance=1e9).check([Answer(prompt, (other,))])
    assert (found.wrong, found.near_ties) == (0, 1)


class Idle:
    """A side that has nothing to start."""

    name = "idle"

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def batch(self, requests: Sequence[Request], streams: int) -> Batch:
        return Batch([], 1.0)


async def test_a_side_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    rounds = Rounds({})
    broken = partial(WorkerSide, "broken", "no_such_worker.py", [], tmp_path)
    await rounds.open({"broken": broken, "idle": Idle})

    async def measure(side: Side, case: str, number: int) -> dict[str, float]:
        return {"wall_s": (await side.batch([], 1)).wall}

    measured = await rounds.measure(["case"], 1, measure)
    await rounds.close()
    assert [each.side for each in measured] == ["idle"]
    assert "broken has ended" in rounds.not_run["broken"]
    assert "no_such_worker.py" in (tmp_path / "broken.log").read_text()
