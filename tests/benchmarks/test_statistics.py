"""The statistics behind the tables."""

from __future__ import annotations

from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.statistics import percentile, ratio

positive = st.floats(min_value=1e-3, max_value=1e3)
some = st.lists(positive, min_size=1, max_size=30)
pairs = st.lists(st.tuples(positive, positive), min_size=1, max_size=9)


@given(some, st.floats(min_value=0, max_value=1))
def test_percentile_is_numpys(values: list[float], share: float) -> None:
    assert percentile(values, share) == pytest.approx(float(np.percentile(values, share * 100)))


@given(some)
def test_percentile_of_a_half_is_the_median(values: list[float]) -> None:
    assert percentile(values, 0.5) == pytest.approx(median(values))


@given(pairs)
def test_the_range_is_that_of_the_rounds(rounds: list[tuple[float, float]]) -> None:
    found = ratio([ours for ours, _ in rounds], [theirs for _, theirs in rounds])
    single = [ours / theirs for ours, theirs in rounds]
    assert (found.low, found.high) == (min(single), max(single))


@given(pairs, positive)
def test_a_machine_slower_for_both_sides_changes_no_ratio(
    rounds: list[tuple[float, float]], slowness: float
) -> None:
    ours, theirs = [list(side) for side in zip(*rounds, strict=True)]
    plain = ratio(ours, theirs)
    slow = ratio([value * slowness for value in ours], [value * slowness for value in theirs])
    assert slow.value == pytest.approx(plain.value)


def test_a_side_that_is_always_twice_as_fast() -> None:
    found = ratio([2.0, 8.0, 4.0], [1.0, 4.0, 2.0])
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)


def test_percentiles_of_nothing_and_rounds_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)
    with pytest.raises(ValueError, match="from 0 to 1"):
        percentile([1.0], 95)
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0, 2.0], [1.0])
