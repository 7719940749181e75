"""Short answers come with the create's own; where they do not, streaming goes on from there."""

from __future__ import annotations

import asyncio
import math

import pytest

from lmtp_replicate.client import connect
from lmtp_replicate.client.pace import MOST_UNHEARD, Pace
from lmtp_replicate.errors import PredictionError
from lmtp_replicate.protocol.messages import Generate, Op, Score
from tests.client.replicate_double import ReplicateDouble
from tests.client.test_replicate import ENDPOINT, creates, expect, quiet, tokens, until

CREATE = "POST /predictions"
LOOK_UP = "GET /models/org/model"


@pytest.mark.parametrize("status", ["succeeded", "processing"])
async def test_scores_and_single_tokens_take_one_request(
    replicate: ReplicateDouble, status: str
) -> None:
    replicate.faults.hold = 20.0
    replicate.faults.always_processing = status == "processing"
    async with connect(ENDPOINT) as client:
        scores, _ = await asyncio.gather(_read(client.score([5], [9, 7, 8])), expect(client, 20, 1))
    await quiet(replicate)
    assert scores == [9, 7, 8]
    assert replicate.requests == [LOOK_UP, CREATE]


async def _read(stream: object) -> list[int]:
    return [item.token async for item in stream]  # type: ignore[attr-defined]


async def test_long_answers_are_streamed(replicate: ReplicateDouble) -> None:
    await expect(connect(ENDPOINT), 5, 40)
    assert replicate.requests == [LOOK_UP, CREATE, "GET /streams/prediction0"]
    assert replicate.prefers == [None]


async def test_waiting_can_be_switched_off(replicate: ReplicateDouble) -> None:
    await expect(connect(f"{ENDPOINT}?wait=off"), 5, 1)
    assert replicate.prefers == [None]
    assert "GET /streams/prediction0" in replicate.requests


async def test_a_server_that_does_not_wait_is_not_asked_for_ever(
    replicate: ReplicateDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = Pace.waited

    def at_once(pace: Pace, asked: int, seconds: float, *, is_answered: bool) -> None:
        waited(pace, asked, 0.0, is_answered=is_answered)

    # However long this machine takes.
    monkeypatch.setattr(Pace, "waited", at_once)
    monkeypatch.setattr(Pace, "began", lambda pace, seconds: None)
    replicate.faults.ignore_wait = True
    replicate.engine._step_seconds = 0.02  # so that the create never holds the answer
    client = connect(ENDPOINT)
    for number in range(MOST_UNHEARD + 2):
        await expect(client, 5 + number, 1)
    assert replicate.prefers == ["wait=1"] * MOST_UNHEARD + [None] * 2


async def test_an_answer_that_is_late_is_streamed(replicate: ReplicateDouble) -> None:
    """The create's answer holds a part of the output, which the stream repeats."""
    replicate.engine.gate.clear()
    client = connect(ENDPOINT)
    reading = asyncio.ensure_future(expect(client, 5, 1))
    stream = "GET /streams/prediction0"
    await asyncio.to_thread(replicate.wait_for, lambda: stream in replicate.requests)
    await until(lambda: client.known_model_info is not None)
    replicate.engine.gate.set()
    await reading
    assert creates(replicate) == 1


async def test_what_is_left_while_it_is_waited_for_is_cancelled(
    replicate: ReplicateDouble,
) -> None:
    replicate.engine.gate.clear()
    reading = asyncio.ensure_future(tokens(connect(ENDPOINT), 5, 1))
    await asyncio.to_thread(replicate.wait_for, lambda: bool(replicate.predictions))
    reading.cancel()
    await asyncio.to_thread(replicate.wait_for, lambda: replicate.cancelled == ["prediction0"])
    replicate.engine.gate.set()
    await quiet(replicate)


async def test_a_prediction_that_fails_while_it_is_waited_for(replicate: ReplicateDouble) -> None:
    replicate.faults.hold = 20.0
    replicate.faults.failure = "the GPU caught fire"
    with pytest.raises(PredictionError, match="the GPU caught fire"):
        await tokens(connect(ENDPOINT), 5, 1)
    assert replicate.requests == [LOOK_UP, CREATE]


def generate(max_tokens: int) -> Op:
    return Generate(1, (5,), max_tokens)


SCORE = Score(2, (5,), (7, 8, 9))


def test_one_token_is_waited_for_and_many_are_not() -> None:
    pace = Pace()
    assert pace.seconds_to_wait([generate(1), SCORE]) == 1
    assert pace.seconds_to_wait([generate(1), generate(2)]) is None


def test_a_few_are_waited_for_where_a_stream_would_be_slower() -> None:
    pace = Pace()
    pace.began(0.05)
    pace.token = 0.01
    pace.connected(0.1)
    assert pace.seconds_to_wait([generate(6), SCORE]) == 1
    assert pace.seconds_to_wait([generate(7)]) is None


def test_slow_models_are_streamed_until_they_are_faster() -> None:
    pace = Pace()
    for _ in range(9):
        pace.waited(1, 1.01, is_answered=False)
    assert pace.seconds_to_wait([SCORE]) == 2
    for _ in range(20):
        pace.waited(2, 2.01, is_answered=False)
    assert pace.seconds_to_wait([SCORE]) is None
    pace.began(120.0)  # a cold boot says nothing
    pace.began(0.1)
    assert pace.seconds_to_wait([SCORE]) == 3


def test_the_window_is_a_share_of_a_create() -> None:
    pace = Pace()
    assert math.isclose(pace.window, 0.015)
    pace.created(0.3)
    assert math.isclose(pace.window, 0.03)
    for _ in range(20):
        pace.created(5.0)
    assert pace.window == 0.05
