"""The comparison of encodings measures answers that arrive whole in both."""

from __future__ import annotations

import pytest

from benchmarks import encoding


def test_every_case_is_measured_in_every_encoding(capsys: pytest.CaptureFixture[str]) -> None:
    assert encoding.main(["--steps", "3"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == len(encoding.CASES) * len(encoding.ENCODINGS)


def test_answers_survive_msgpack_in_base85() -> None:
    items = encoding.steps(4, 5, 1)[0]
    line = encoding.as_msgpack(items)
    assert line.isascii()
    assert line.count("\n") == 1
    assert encoding.from_msgpack(line) == items
