"""The room for prompt tokens follows measured step times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_replicate.engine.pace import (
    ALONE,
    LEAST,
    LEAST_BESIDE_RECORDED,
    SHORT_SECONDS,
    SHORT_STEPS,
    SHORT_TOKENS,
    Pace,
)


@given(
    alone=st.floats(1e-3, 0.5),
    each=st.floats(1e-6, 0.1),
    fixed=st.floats(0, 0.01),
    decoding=st.integers(1, 200),
)
def test_a_step_with_a_long_prompt_settles_at_twice_a_decode_only_one(
    alone: float, each: float, fixed: float, decoding: int
) -> None:
    pace = Pace(chunk_tokens=10**6)
    pace.observe(decoding, 0, alone)
    budget = 0
    for _ in range(200):
        budget = pace.room(decoding, 1).long
        pace.observe(decoding, budget, alone + fixed + budget * each)
    seconds = alone + fixed + budget * each
    assert budget == LEAST or seconds <= 2.1 * alone
    if alone > fixed + 2 * LEAST * each:
        assert seconds + each >= 1.8 * alone, "the budget could be larger"


@given(alone=st.floats(1e-3, 0.5), each=st.floats(1e-5, 0.005), decoding=st.integers(1, 200))
def test_short_prompts_may_add_half_a_second(alone: float, each: float, decoding: int) -> None:
    pace = Pace(chunk_tokens=10**6)
    pace.observe(0, 500, 500 * each)
    pace.observe(decoding, 0, alone)
    pace.observe(decoding, 100, alone + 100 * each)
    room = pace.room(decoding, 1)
    assert room.short >= room.long
    allowed = max(alone, SHORT_SECONDS)
    assert allowed - 2 * each <= room.short * each <= allowed * 1.001
    longest = min(SHORT_STEPS * room.short, SHORT_TOKENS)
    assert room.is_short(longest)
    assert not room.is_short(longest + 1)


@given(
    alone=st.floats(1e-3, 2.0),
    each=st.floats(1e-5, 0.01),
    decoding=st.integers(1, 200),
    prompts=st.integers(1, 50),
)
def test_where_several_prompts_wait_each_may_add_a_steps_time(
    alone: float, each: float, decoding: int, prompts: int
) -> None:
    pace = Pace(chunk_tokens=10**6)
    pace.observe(decoding, 0, alone)
    pace.observe(decoding, 200, alone + 200 * each)
    allowed = max(alone, min(prompts * alone, SHORT_SECONDS))
    room = pace.room(decoding, prompts)
    assert room.long == LEAST or allowed - 2 * each <= room.long * each <= allowed * 1.001
    assert room.long <= room.short


def test_a_burst_of_long_prompts_is_not_held_up_by_numbers_of_streams_not_seen_before() -> None:
    """Else all that the others take would be put down to the few tokens beside them."""
    pace = Pace(chunk_tokens=512)
    pace.observe(0, 500, 0.5)
    pace.observe(1, 0, 0.02)
    for decoding in range(1, 33):
        room = pace.room(decoding, 33 - decoding)
        assert room.long >= 0.6 * min(500, 20 * (33 - decoding))
        seconds = 0.02 + 0.002 * decoding  # only that of a single stream has been seen
        pace.observe(decoding, room.long, seconds + 0.001 * room.long)


def test_short_prompts_are_not_held_up_by_numbers_of_streams_not_seen_before() -> None:
    pace = Pace(chunk_tokens=512)
    pace.observe(0, 500, 0.5)
    pace.observe(1, 0, 0.02)
    for _ in range(50):
        pace.observe(32, 100, 0.06 + 0.1)  # 32 streams by themselves, never seen, take 60 ms
    assert pace.room(32, 1).short == 500


@given(each=st.floats(1e-6, 0.1), chunk_tokens=st.integers(1, 10_000))
def test_with_nothing_decoding_a_step_takes_half_a_second(each: float, chunk_tokens: int) -> None:
    pace = Pace(chunk_tokens)
    pace.observe(1, 16, 9.0)
    assert pace.room(0, 1) == (min(ALONE, chunk_tokens),) * 2, "one token has been seen to be dear"
    pace.observe(0, 500, 500 * each)
    room = pace.room(0, 1)
    assert room.short == room.long <= chunk_tokens
    if room.long < chunk_tokens:
        assert room.long == ALONE or abs(room.long * each - SHORT_SECONDS) <= 1.001 * each


@pytest.mark.parametrize("decoding", [1, 7, 100])
def test_before_anything_is_known_the_room_is_small(decoding: int) -> None:
    assert Pace(chunk_tokens=512).room(decoding, 1) == (LEAST, LEAST)


def test_a_long_prompt_beside_recorded_steps_does_not_wait_for_launches() -> None:
    pace = Pace(chunk_tokens=2048, least=LEAST_BESIDE_RECORDED)
    for _ in range(50):
        pace.observe(8, 0, 0.006)
        room = pace.room(8, 1)
        pace.observe(8, room.long, 0.025)  # what launching takes, whatever their number
    assert room.long >= LEAST_BESIDE_RECORDED
    assert Pace(chunk_tokens=64, least=LEAST_BESIDE_RECORDED).room(8, 1) == (64, 64)


@pytest.mark.parametrize("decoding", [0, 4])
def test_one_slow_step_is_soon_forgotten(decoding: int) -> None:
    """When a burst begins, its clients may still be at work on the same cores."""
    pace = Pace(chunk_tokens=2048)
    pace.observe(4, 0, 0.05)
    pace.observe(decoding, 500, 5.0)
    for _ in range(40):
        short = pace.room(4, 20).short
        pace.observe(4, short, 0.05 + 0.001 * short)
    assert 400 <= pace.room(4, 20).short <= 500
    for _ in range(20):
        pace.observe(4, LEAST, 0.5)  # that few tokens are dear tells nothing of many
        pace.observe(0, 3, 0.05)
    assert 400 <= pace.room(4, 20).short <= 500


def test_a_burst_is_not_held_up_where_no_decode_step_has_been_seen() -> None:
    """None would come while prompts wait."""
    pace = Pace(chunk_tokens=512)
    pace.observe(0, 500, 0.5)
    assert pace.room(1, 31).long >= 499


def test_large_chunks_tell_more_than_small_ones_what_a_token_takes() -> None:
    pace = Pace(chunk_tokens=512)
    for _ in range(20):
        pace.observe(0, 2, 0.02)
        pace.observe(0, 500, 0.5)
    assert pace.room(1, 1).short >= 475


def test_the_room_never_exceeds_the_chunk() -> None:
    assert Pace(chunk_tokens=3).room(1, 1) == (3, 3)
