"""Replicate's event streams: exact chunks, replay, resume, many readers, trouble on demand."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_replicate.gateway.event_log import EventLog
from tests.gateway.running import Running, parsed, running


@given(st.lists(st.text()))
def test_chunks_are_exact_whatever_they_hold(chunks: list[str]) -> None:
    log = EventLog()
    for chunk in chunks:
        log.output(chunk)
    log.done()
    read = list(parsed(iter(log.since(0))))
    assert [event["data"] for event in read] == [*chunks, "{}"]
    ids = [event["id"] for event in read]
    assert len(set(ids)) == len(ids)
    for place, event_id in enumerate(ids):
        assert log.place_after(event_id) == place + 1


def test_whatever_is_not_text_is_shown_as_json() -> None:
    log = EventLog()
    log.output({"a": [1, None]})
    assert b'data: {"a": [1, null]}\n' in log.since(0)[0]


async def test_waiting_ends_with_the_next_event_only() -> None:
    log = EventLog()
    assert not await log.wait(0, 0.01)
    waiting = asyncio.create_task(log.wait(0, 30))
    await asyncio.sleep(0)
    log.done()
    assert await waiting
    assert await log.wait(0, 30)


@pytest.mark.parametrize("text", ["a\n", "\n\n", "", " a", "\r\n", "a\rb", "\u2028", ": x", "ü😀"])
def test_special_chunks_through_the_runtime(shared: Running, text: str) -> None:
    prediction = shared.create({"text": text, "count": 2})
    chunks = [e["data"] for e in shared.events(prediction) if e.get("event") == "output"]
    assert chunks == [text, text]
    assert shared.get(prediction)["output"] == [text, text]


def test_the_order_of_a_stream(shared: Running) -> None:
    events = list(shared.events(shared.create({"text": "a", "style": "number"})))
    assert events[0] == {"comment": ": hi"}
    assert [(e["event"], e["data"]) for e in events[1:]] == [
        ("output", "a0"),
        ("output", "a1"),
        ("output", "a2"),
        ("done", "{}"),
    ]


def test_a_failure_keeps_the_output_before_it(shared: Running) -> None:
    prediction = shared.create({"text": "a", "fail_at": 2})
    *_, second, error, done = shared.events(prediction)
    assert (second["data"], done["data"]) == ("a", '{"reason": "error"}')
    assert "the toy broke" in error["data"]
    ended = shared.get(prediction)
    assert (ended["status"], ended["output"]) == ("failed", ["a", "a"])
    assert "the toy broke" in ended["error"]


def test_a_cancelled_stream_ends_at_once(shared: Running, tmp_path: Path) -> None:
    """Also where the model does not hear of it: this one waits at its gate."""
    gate = tmp_path / "gate"
    prediction = shared.create({"text": "a", "gate": str(gate)})
    events = shared.events(prediction)
    assert [next(events).get("data") for _ in range(2)] == [None, "a"]
    cancelled = shared.http.post(prediction["urls"]["cancel"]).json()
    assert (cancelled["status"], cancelled["output"]) == ("canceled", ["a"])
    assert [event["data"] for event in events] == ['{"reason": "canceled"}']
    gate.touch()


def test_replay_and_resume(shared: Running) -> None:
    prediction = shared.create({"text": "a", "style": "number"})
    events = list(shared.events(prediction))[1:]
    assert list(shared.events(prediction))[1:] == events
    for place, event in enumerate(events):
        assert list(shared.events(prediction, event["id"]))[1:] == events[place + 1 :]
    assert list(shared.events(prediction, "unknown"))[1:] == events


def test_readers_come_and_go_without_effect(
    shared: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = tmp_path / "gate"
    prediction = shared.create({"text": "a", "gate": str(gate), "style": "number"})
    first, second = shared.events(prediction), shared.events(prediction)
    assert [next(first).get("data") for _ in range(2)] == [None, "a0"]
    assert [next(second).get("data") for _ in range(2)] == [None, "a0"]
    first.close()
    gate.touch()
    assert [event["data"] for event in second] == ["a1", "a2", "{}"]
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_stream_needs_no_token_and_takes_a_wrong_one(shared: Running) -> None:
    prediction = shared.create({"text": "a"})
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = httpx.get(prediction["urls"]["stream"], headers=headers)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream"


def test_many_chunks_in_order(shared: Running) -> None:
    prediction = shared.create({"text": "", "style": "number", "count": 20_000})
    chunks = [e["data"] for e in shared.events(prediction) if e.get("event") == "output"]
    assert chunks == [str(number) for number in range(20_000)]


def test_streams_that_end_early_can_be_resumed(toy: Path) -> None:
    with running([toy]) as own:
        own.gateway.faults.end_stream_after = 2
        prediction = own.create({"text": "a", "style": "number"})
        seen: list[dict[str, str]] = []
        while not seen or seen[-1]["event"] != "done":
            piece = list(own.events(prediction, seen[-1]["id"] if seen else None))[1:]
            assert 0 < len(piece) <= 2
            seen += piece
        assert [event["data"] for event in seen] == ["a0", "a1", "a2", "{}"]


def test_a_silent_stream_is_closed_with_a_comment(toy: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with running([toy]) as own:
        own.gateway.faults.idle_seconds = 0.3
        prediction = own.create({"text": "a", "gate": str(gate)})
        first = list(own.events(prediction))
        assert first[-1] == {"comment": ":408: 408 Request Timeout"}
        assert "done" not in [event.get("event") for event in first]
        gate.touch()
        own.gateway.faults.idle_seconds = None
        assert list(own.events(prediction))[-1]["event"] == "done"


def test_a_resumed_stream_may_repeat_everything(toy: Path) -> None:
    with running([toy]) as own:
        own.gateway.faults.replay_all = True
        prediction = own.create({"text": "a"})
        events = list(own.events(prediction))
        assert list(own.events(prediction, events[-1]["id"])) == events


def test_late_answers(toy: Path) -> None:
    with running([toy]) as own:
        prediction = own.create({"text": "a"}, {"Prefer": "wait"})
        faults = own.gateway.faults
        for request in (
            lambda: own.create({"text": "a"}),
            lambda: list(own.events(prediction)),
        ):
            faults.create_seconds = faults.stream_seconds = 60
            own.http.timeout = 0.25
            with pytest.raises(httpx.ReadTimeout):
                request()
            faults.create_seconds = faults.stream_seconds = 0.1
            own.http.timeout = 30
            request()
