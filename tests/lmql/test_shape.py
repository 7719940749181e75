"""LMQL gets streams as long as it can use them, ended once it no longer does; the results are those
of LMQL's own lengths."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import lmql
import pytest

import lmtp_replicate  # noqa: F401 - the plug-in
from lmtp_replicate.lmql import lengths
from tests.client.replicate_double import ReplicateDouble
from tests.lmql.holding import Hold


@pytest.fixture(autouse=True)
def _new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No whitelist has been seen yet."""
    monkeypatch.setattr(lengths, "_staying", lengths.Recent())


@pytest.fixture
def ask(replicate: ReplicateDouble, tokenizer: str) -> Callable[..., Any]:
    async def ask(query: str, settings: str = "", **options: Any) -> Any:
        endpoint = f"replicate:org/model{settings}"
        model = lmql.model("any", endpoint=endpoint, tokenizer=tokenizer, **options)
        return await asyncio.wait_for(lmql.run(query, model=model), 60)

    return ask


def lengths_asked_for(replicate: ReplicateDouble) -> list[int]:
    """`max_tokens` of every GENERATE."""
    batches = [
        json.loads(prediction.input["ops_batch_json"]) for prediction in replicate.predictions
    ]
    return [op["max_tokens"] for batch in batches for kind, op in batch if kind == "GENERATE"]


IN_TWICE = 'argmax "a:[X] b:[Y]" where X in [" yes", " no"] and Y in [" no", " maybe"]'


async def test_one_token_where_a_whitelist_will_not_stay(replicate: ReplicateDouble, ask) -> None:
    shaped = await ask(IN_TWICE)
    assert lengths_asked_for(replicate) == [1, 1]
    plain = await ask(IN_TWICE, "?shape=off")
    assert lengths_asked_for(replicate)[2:] == [16, 16]
    assert shaped.variables == plain.variables


DIGITS = 'argmax "a [X]." where REGEX(X, r"[0-9][0-9][0-9][0-9][0-9][0-9]")'


async def test_more_where_it_may_stay(replicate: ReplicateDouble, ask) -> None:
    """LMQL's mask is the same for all six digits."""
    assert (await ask(DIGITS)).variables["X"] == "000000"
    assert lengths_asked_for(replicate) == [4, 16]
    assert (await ask(DIGITS, "?shape=off")).variables["X"] == "000000"
    assert lengths_asked_for(replicate)[2:] == [16]


LETTERS = 'argmax "a [X]." where REGEX(X, r"[xyz][xyz][xyz]")'


async def test_a_whitelist_that_has_stayed_is_known(replicate: ReplicateDouble, ask) -> None:
    """To the query, which does not ask letter by letter, and to those after it."""
    first = await ask(LETTERS)
    assert lengths_asked_for(replicate) == [1, 4]
    second = await ask(LETTERS)
    assert lengths_asked_for(replicate)[2:] == [4]
    assert first.variables == second.variables


WITHOUT_HINT = 'argmax "a[X]" where STOPS_BEFORE(X, "z")'


async def test_64_without_a_hint(replicate: ReplicateDouble, ask) -> None:
    shaped = await ask(WITHOUT_HINT)
    assert lengths_asked_for(replicate) == [64]
    plain = await ask(WITHOUT_HINT, "?shape=off")
    assert lengths_asked_for(replicate)[1:] == [16, 16]
    assert shaped.variables == plain.variables == {"X": "bcdefghijklmnopqrstuvwxy"}


@pytest.mark.parametrize(
    ("query", "options", "expected"),
    [
        ('argmax "a[X]" where STOPS_AT(X, "e") and len(TOKENS(X)) < 17', {}, [16]),
        ('argmax "a[X]" where STOPS_AT(X, "e") and len(TOKENS(X)) < 200', {}, [199]),
        ('argmax "a[X]" where STOPS_AT(X, "e")', {"chunksize": 7}, [7]),
        ('argmax "x[X]"', {}, [128]),
        ('sample(n=2, temperature=0.7) "a[X]" where len(TOKENS(X)) < 9', {}, [8, 8]),
    ],
)
async def test_what_the_user_has_set_is_kept(
    replicate: ReplicateDouble, ask, query: str, options: dict[str, int], expected: list[int]
) -> None:
    await ask(query, **options)
    assert lengths_asked_for(replicate) == expected


GOES_ON = 'argmax "a[X]d[Y]n" where STOPS_AT(X, "c") and len(TOKENS(X)) < 5 and STOPS_AT(Y, "m")'


async def test_more_where_a_stream_has_run_out(replicate: ReplicateDouble, ask) -> None:
    """The model writes what the query says: the second op goes on where the first one ended."""
    shaped = await ask(GOES_ON)
    assert lengths_asked_for(replicate) == [4, 64]
    plain = await ask(GOES_ON, "?shape=off&memory=off&join=off")
    assert lengths_asked_for(replicate)[2:] == [4, 16]
    assert shaped.variables == plain.variables == {"X": "bc", "Y": "efghijklm"}


async def test_the_query_goes_on_with_the_first_token(replicate: ReplicateDouble, ask) -> None:
    """Its scores are asked for while the model still writes the second; LMQL waits for four."""
    held = Hold(replicate.engine, "c")
    query = 'argmax "ab[X]:[Y]" where STOPS_AT(X, "c") distribution Y in [" yes", " no"]'
    asking = asyncio.ensure_future(ask(query))
    try:
        await asyncio.to_thread(replicate.wait_for, lambda: len(replicate.predictions) == 2)
        assert await asyncio.to_thread(held.reached.wait, 20)
    finally:
        held.go_on.set()
    plain = await ask(query, "?early=off")
    assert (await asking).variables["X"] == plain.variables["X"] == "c"


async def test_beams_are_short(replicate: ReplicateDouble, ask) -> None:
    shaped = await ask('beam(n=2) "x[X]"', "?ahead=off")
    asked = len(replicate.predictions)
    assert set(lengths_asked_for(replicate)) == {32}
    plain = await ask('beam(n=2) "x[X]"', "?shape=off&memory=off&join=off")
    assert set(lengths_asked_for(replicate)[asked:]) == {128}
    assert [beam.variables for beam in shaped] == [beam.variables for beam in plain]


BEAM_IN = 'beam(n=2) "abc[X] def" where X in ["de fg", "dexy z", "no pq"]'


async def test_scores_of_beams_are_remembered(replicate: ReplicateDouble, ask) -> None:
    """LMQL asks for the same scores again and again; without memory the results are the same."""
    remembered = await ask(BEAM_IN)
    few = len(replicate.predictions)
    asked = await ask(BEAM_IN, "?memory=off")
    assert few < len(replicate.predictions) - few
    for ours, plain in zip(remembered, asked, strict=True):
        assert ours.variables == plain.variables
        assert ours.prompt == plain.prompt


@pytest.mark.parametrize("query", [GOES_ON, WITHOUT_HINT])
async def test_the_same_query_again_costs_nothing(
    replicate: ReplicateDouble, ask, query: str
) -> None:
    first = await ask(query)
    asked = len(replicate.predictions)
    again = await ask(query)
    assert len(replicate.predictions) == asked
    assert again.variables == first.variables


# Superseded streams


async def test_a_stream_that_the_query_has_left_ends_at_once(
    replicate: ReplicateDouble, ask
) -> None:
    """Its prediction is cancelled while the query goes on, and its place in the engine is free."""
    held = Hold(replicate.engine, "m")
    replicate.engine._step_seconds = 0.01
    query = 'argmax "ab[X]-ij[Y]" where STOPS_AT(X, "d") and STOPS_AT(Y, "n")'
    asking = asyncio.ensure_future(ask(query))
    try:
        await asyncio.to_thread(
            replicate.wait_for,
            lambda: replicate.cancelled == ["prediction0"] and len(replicate.predictions) == 2,
        )
        assert replicate.live == ["prediction1"]
    finally:
        held.go_on.set()
    assert (await asking).variables == {"X": "cd", "Y": "klmn"}
    await asyncio.to_thread(replicate.wait_for, lambda: "prediction1" in replicate.cancelled)


async def test_scores_show_it_too(replicate: ReplicateDouble, ask) -> None:
    held = Hold(replicate.engine, "-")
    replicate.engine._step_seconds = 0.01
    query = 'argmax "ab[X]-[Y]" where STOPS_AT(X, "d") distribution Y in [" yes", " no"]'
    asking = asyncio.ensure_future(ask(query))
    try:
        await asyncio.to_thread(
            replicate.wait_for,
            lambda: replicate.cancelled == ["prediction0"] and len(replicate.predictions) == 2,
        )
        assert replicate.live == ["prediction1"]
    finally:
        held.go_on.set()
    assert (await asking).variables["X"] == "cd"


async def test_samples_go_several_ways(replicate: ReplicateDouble, ask) -> None:
    """A later op of one says nothing about the stream of another."""
    held = Hold(replicate.engine, "m")
    replicate.engine._step_seconds = 0.005
    query = 'sample(n=2, temperature=0.7) "ab[X]-ij[Y]" where STOPS_AT(X, "d") and STOPS_AT(Y, "n")'
    asking = asyncio.ensure_future(ask(query))
    try:
        await asyncio.to_thread(replicate.wait_for, lambda: len(replicate.predictions) == 2)
        await asyncio.to_thread(held.reached.wait, 20)
        assert replicate.live == ["prediction0", "prediction1"]
    finally:
        held.go_on.set()
    assert [sample.variables for sample in await asking] == [{"X": "cd", "Y": "klmn"}] * 2
