"""Distributions as bars."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_replicate.demo.bars import WIDTH, bars


def test_one_line_per_option_in_order_with_per_cent() -> None:
    lines = bars({"positive": 0.75, "negative": 0.25, "neutral": 0.0}).splitlines()
    assert [line.split()[0] for line in lines] == ["positive", "negative", "neutral"]
    assert [line.rsplit(maxsplit=1)[1] for line in lines] == ["75.0%", "25.0%", "0.0%"]
    assert [line.count("█") for line in lines] == [30, 10, 0]
    assert len({len(line) for line in lines}) == 1


@given(st.floats(min_value=0, max_value=1))
def test_a_bar_is_as_long_as_its_probability(probability: float) -> None:
    bar = bars({"x": probability})[len("  x  ") :][:WIDTH]
    eighths = bar.count("█") * 8 + sum(" ▏▎▍▌▋▊▉".index(c) for c in bar.strip("█").strip())
    assert eighths / (WIDTH * 8) == pytest.approx(probability, abs=1 / (WIDTH * 8))


def test_no_options_no_lines() -> None:
    assert bars({}) == ""
