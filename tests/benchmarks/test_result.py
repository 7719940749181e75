"""The JSON of a comparison, and the tables made of it."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
from pydantic import ValidationError

from benchmarks.machine import facts
from benchmarks.model import TINY, describe
from benchmarks.report import BEGIN, END, write
from benchmarks.result import Agreement, Measurement, Result
from benchmarks.tables import table


def measurement(side: str, number: int, rate: float, wall: float = 1.0) -> Measurement:
    figures = {"tokens_per_s": rate, "ttft_p95_s": wall}
    return Measurement(case="8", side=side, round=number, figures=figures)


@pytest.fixture
def result() -> Result:
    return Result(
        comparison="engine",
        started="2026-11-21T00:00:00+00:00",
        machine=facts(),
        model=describe(TINY),
        dtype="float32",
        settings={"rounds": 3},
        measurements=[
            *(measurement("ours", number, 400.0, 0.5) for number in range(3)),
            *(measurement("upstream", number, rate, 2.0) for number, rate in enumerate((100, 80))),
        ],
        not_run={"vllm": "not installed"},
        agreement={"ours": Agreement(tokens=10, near_ties=1, wrong=0, largest_gap=1e-5)},
    )


def test_a_result_comes_back_from_its_file(result: Result, tmp_path: Path) -> None:
    result.save(tmp_path / "deep/engine.json")
    assert Result.load(tmp_path / "deep/engine.json") == result


def test_the_file_follows_the_schema_and_knows_the_machine(result: Result) -> None:
    content = result.model_dump(mode="json")
    jsonschema.validate(content, Result.model_json_schema())
    assert {"cpu", "cores", "versions", "commit"} <= content["machine"].keys()


def test_a_figure_nobody_knows_is_refused() -> None:
    with pytest.raises(ValidationError):
        Measurement.model_validate({"case": "1", "side": "a", "round": -1, "figures": {}})


def test_a_side_that_failed_in_the_middle_is_compared_over_the_rounds_it_did(
    result: Result,
) -> None:
    better = result.advantage("ours", "upstream", "8", "tokens_per_s")
    assert better is not None
    assert (better.low, better.high) == (4.0, 5.0)


def test_less_time_is_better_and_more_tokens_are(result: Result) -> None:
    faster = result.advantage("ours", "upstream", "8", "ttft_p95_s")
    assert faster is not None
    assert faster.value == 4.0


def test_what_was_not_run_stands_in_the_table_with_its_reason(result: Result) -> None:
    assert "| vllm | not run: not installed |" in table(result, "tokens_per_s")


def test_the_report_replaces_only_what_stands_between_its_marks(
    result: Result, tmp_path: Path
) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text(f"# before\n{BEGIN}\nold\n{END}\nafter\n")
    write([result], document)
    text = document.read_text()
    assert text.startswith("# before\n") and text.endswith("\nafter\n")
    assert "old" not in text
    assert "| ours | 400 |" in text
    document.write_text("# no marks")
    with pytest.raises(ValueError, match="must hold the lines"):
        write([result], document)


def test_of_one_comparison_on_two_machines_the_newest_comes_first(
    result: Result, tmp_path: Path
) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text(f"{BEGIN}\n{END}")
    newer = result.model_copy(update={"started": "2026-11-22T00:00:00+00:00"})
    other = result.model_copy(update={"comparison": "memory"})
    write([other, result, newer], document)
    text = document.read_text()
    assert text.index("2026-11-22") < text.index("2026-11-21") < text.index("### memory")
