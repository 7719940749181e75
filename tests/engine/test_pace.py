"""The budget of prompt tokens follows measured step times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_replicate.engine.pace import LEAST, Pace


@given(
    alone=st.floats(1e-3, 0.5),
    each=st.floats(1e-6, 0.1),
    fixed=st.floats(0, 0.01),
    decoding=st.integers(1, 200),
)
def test_a_step_settles_at_twice_a_decode_only_one(
    alone: float, each: float, fixed: float, decoding: int
) -> None:
    pace = Pace(chunk_tokens=10**6)
    pace.observe(decoding, 0, alone)
    budget = 0
    for _ in range(200):
        budget = pace.budget(decoding)
        pace.observe(decoding, budget, alone + fixed + budget * each)
    seconds = alone + fixed + budget * each
    assert budget == LEAST or seconds <= 2.1 * alone
    if alone > fixed + 2 * LEAST * each:
        assert seconds + each >= 1.8 * alone, "the budget could be larger"


def test_with_nothing_decoding_the_whole_chunk_is_used() -> None:
    pace = Pace(chunk_tokens=512)
    pace.observe(1, 16, 9.0)
    assert pace.budget(0) == 512


@pytest.mark.parametrize("decoding", [1, 7, 100])
def test_before_anything_is_known_the_budget_is_small(decoding: int) -> None:
    assert Pace(chunk_tokens=512).budget(decoding) == LEAST


def test_the_budget_never_exceeds_the_chunk() -> None:
    assert Pace(chunk_tokens=3).budget(1) == 3
