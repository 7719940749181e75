from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_replicate.client.retry import (
    LONGEST_DELAY,
    MOST_ATTEMPTS,
    Failure,
    delay_before_retry,
    requested_delay,
)

NOW = datetime(2026, 1, 5, 10, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("failure", "create", "read"),
    [
        (Failure(429), True, True),
        (Failure(503), True, True),
        (Failure(500), False, True),
        (Failure(502), False, True),
        (Failure(504), False, True),
        (Failure(502, retry_after=1.0), True, True),
        (Failure(None, was_sent=False), True, True),
        (Failure(None, was_sent=True), False, True),
        (Failure(400), False, False),
        (Failure(401), False, False),
        (Failure(404), False, False),
        (Failure(422), False, False),
    ],
)
def test_only_what_cannot_have_been_accepted_is_created_again(
    failure: Failure, create: bool, read: bool
) -> None:
    for repeatable, expected in ((False, create), (True, read)):
        delay = delay_before_retry(failure, 1, repeatable=repeatable, jitter=0.5)
        assert (delay is not None) == expected


@given(st.integers(1, MOST_ATTEMPTS - 1), st.floats(0, 1, exclude_max=True))
def test_the_back_off_grows_and_is_bounded(attempt: int, jitter: float) -> None:
    delay = delay_before_retry(Failure(503), attempt, repeatable=True, jitter=jitter)
    assert delay is not None
    ceiling = min(LONGEST_DELAY, 0.5 * 2 ** (attempt - 1))
    assert ceiling / 2 <= delay <= ceiling


@given(st.floats(0, 120), st.floats(0, 1, exclude_max=True))
def test_a_stated_delay_is_kept(seconds: float, jitter: float) -> None:
    failure = Failure(429, retry_after=seconds)
    delay = delay_before_retry(failure, 1, repeatable=False, jitter=jitter)
    assert delay is not None
    assert seconds <= delay <= seconds + 0.1


def test_there_is_a_last_attempt() -> None:
    for failure in (Failure(429), Failure(429, retry_after=1.0)):
        assert delay_before_retry(failure, MOST_ATTEMPTS, repeatable=True, jitter=0) is None
    too_long = Failure(429, retry_after=3600.0)
    assert delay_before_retry(too_long, 1, repeatable=True, jitter=0) is None


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"Retry-After": "7"}, {"retry_after": 3}, 7.0),
        ({"Retry-After": "Mon, 05 Jan 2026 10:00:30 GMT"}, None, 30.0),
        ({"Retry-After": "Mon, 05 Jan 2026 09:00:30 GMT"}, None, 0.0),
        ({"Retry-After": "later"}, None, None),
        ({}, {"retry_after": 10}, 10.0),
        ({}, {"retry_after": "nan"}, None),
        ({}, {"detail": "Your rate limit resets in ~30s."}, 30.0),
        ({}, {"detail": "Request was throttled."}, None),
        ({}, ["no object"], None),
        ({}, None, None),
    ],
)
def test_what_a_refusal_asks_for(headers: dict[str, str], body: object, seconds: float) -> None:
    assert requested_delay(headers, body, NOW) == seconds
