"""The work that all sides are given, and the figures made of the answers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.trace import Trace, figures
from benchmarks.workload import FIRST_ID, Mask, Source


@given(st.integers(2, 64), st.integers(1, 100), st.integers(0, 400))
def test_prompts_spread_from_the_shortest_to_the_longest(
    count: int, shortest: int, more: int
) -> None:
    requests = Source(500, "a").requests(count, (shortest, shortest + more), 7)
    lengths = sorted(len(request.prompt) for request in requests)
    assert (lengths[0], lengths[-1]) == (shortest, shortest + more)
    gaps = {later - earlier for earlier, later in pairwise(lengths)}
    assert max(gaps) - min(gaps) <= 1
    assert all(FIRST_ID <= token < 500 for request in requests for token in request.prompt)


def test_equal_seeds_give_equal_work_and_rounds_differ() -> None:
    assert Source(500, "engine", 0).tokens(50) == Source(500, "engine", 0).tokens(50)
    assert Source(500, "engine", 0).tokens(50) != Source(500, "engine", 1).tokens(50)


def test_masks_name_as_many_ids_as_asked() -> None:
    mask = Source(500, "mask").mask(100, is_whitelist=True)
    assert len(mask.bias) == 100
    assert set(mask.bias.values()) == {100.0}
    assert Mask((4, 7), is_whitelist=False).bias == {4: -100.0, 7: -100.0}


def test_figures_of_two_streams() -> None:
    traces = [
        Trace(0.0, [5, 6, 7], [1.0, 1.5, 2.0]),
        Trace(1.0, [8, 9], [4.0, 4.25]),
    ]
    found = figures(traces, wall=5.0)
    assert found["tokens_per_s"] == 1.0
    assert found["ttft_p50_s"] == 2.0
    assert found["itl_p50_s"] == 0.5
    assert found["ttft_p95_s"] == pytest.approx(2.9)


def test_streams_of_one_token_have_no_inter_token_latency() -> None:
    assert "itl_p50_s" not in figures([Trace(0.0, [5], [1.0])], wall=1.0)
