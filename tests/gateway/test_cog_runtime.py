"""What the Cog runtime says, and what is made of it when it says it badly."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_replicate.errors import EngineError, TransportError
from lmtp_replicate.gateway.cog_events import (
    CogEvent,
    Completed,
    EventReader,
    Lagged,
    Log,
    Metric,
    Output,
    Started,
)
from lmtp_replicate.gateway.cog_runtime import CogRuntime, RuntimeSettings
from lmtp_replicate.gateway.prediction import Prediction, Status
from lmtp_replicate.gateway.work_directory import WorkDirectory
from tests.gateway.toys import TEXT, make_toy


@given(
    st.lists(st.tuples(st.booleans(), st.text())),
    st.lists(st.integers(min_value=0), max_size=20),
)
def test_events_do_not_depend_on_the_borders_of_pieces(
    chunks: list[tuple[bool, str]], cuts: list[int]
) -> None:
    wire, expected = b"", []
    for index, (alive, chunk) in enumerate(chunks):
        # coglet leaves everything but control characters unescaped.
        data = json.dumps({"chunk": chunk, "index": index}, ensure_ascii=False)
        if alive:
            wire += b": keep-alive\n\n"
        wire += f"event: output\ndata: {data}\n\n".encode("utf-8", "replace")
        expected.append(Output(index, chunk.encode("utf-8", "replace").decode()))
    reader, read = EventReader(), []
    borders = sorted({0, len(wire), *(cut % (len(wire) + 1) for cut in cuts)})
    for start, end in pairwise(borders):
        read += list(reader.feed(wire[start:end]))
    assert read == expected


@pytest.mark.parametrize(
    ("name", "body", "event"),
    [
        ("start", {"id": "a", "status": "processing"}, Started()),
        ("log", {"source": "stdout", "data": "x\n"}, Log("x\n")),
        ("metric", {"name": "n", "value": 1, "mode": "append"}, Metric("n", 1, "append")),
        ("completed", {"status": "canceled", "output": ["a"]}, Completed("canceled")),
        ("completed", {"status": "failed", "error": "e"}, Completed("failed", "e")),
        ("error", {"error": "lagged", "skipped": 3}, Lagged("lagged")),
        ("later-invention", {}, None),
    ],
)
def test_every_event(name: str, body: dict, event: CogEvent | None) -> None:
    wire = f"event: {name}\ndata: {json.dumps(body)}\n\n".encode()
    assert list(EventReader().feed(wire)) == ([] if event is None else [event])


@pytest.mark.parametrize("wire", [b"event: output\ndata: {\n\n", b"event: completed\ndata: []\n\n"])
def test_unreadable_events(wire: bytes) -> None:
    with pytest.raises(TransportError, match="unreadable"):
        list(EventReader().feed(wire))


async def test_output_that_coglet_drops_is_never_missed_unnoticed(tmp_path: Path) -> None:
    """coglet drops events for a reader that is too slow. The gateway is not, but must notice."""
    done = "        Path('done').touch()\n"
    work = WorkDirectory.read(make_toy(tmp_path / "toy", TEXT + done))
    inputs = {"text": "x" * 1000, "count": 40_000}
    async with CogRuntime(work, RuntimeSettings(grace=0.3)) as runtime:
        with pytest.raises(EngineError, match="was lost"):
            async with aclosing(runtime.predict("slow", inputs)) as events:
                async for event in events:
                    while isinstance(event, Output) and not (work.path / "done").exists():
                        pass  # the event loop is blocked, and so nobody reads
        async with aclosing(runtime.predict("next", {"text": "a", "count": 1})) as events:
            assert [event async for event in events][1] == Output(0, "a")


async def test_stopping_the_runtime_ends_what_is_being_read(tmp_path: Path) -> None:
    """The reader is told, at once; nobody waits for a connection that was given up."""
    work = WorkDirectory.read(make_toy(tmp_path / "toy"))
    inputs = {"text": "a", "gate": str(tmp_path / "never")}
    async with (
        CogRuntime(work, RuntimeSettings(grace=0.3)) as runtime,
        aclosing(runtime.predict("waits", inputs)) as events,
    ):
        assert [await anext(events), await anext(events)] == [Started(), Output(0, "a")]
        reading = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)  # now it waits for the next chunk
        await runtime.stop()
        with pytest.raises(EngineError, match="was stopped"):
            await asyncio.wait_for(reading, 10)


def test_metrics_are_kept_by_their_mode() -> None:
    prediction = Prediction("local", "toy", "v", {})
    for metric in [
        Metric("tokens", 2, "increment"),
        Metric("tokens", 3, "increment"),
        Metric("seen", "a", "append"),
        Metric("seen", "b", "append"),
        Metric("last", 1, "replace"),
        Metric("last", 2, "replace"),
    ]:
        prediction.apply(metric)
    assert prediction.metrics == {"tokens": 5, "seen": ["a", "b"], "last": 2}


async def test_nothing_changes_a_prediction_after_its_end() -> None:
    prediction = Prediction("local", "toy", "v", {})
    prediction.apply(Started())
    prediction.apply(Output(0, "a"))
    prediction.cancel()
    before = prediction.show("http://x/v1")
    prediction.apply(Output(1, "b"))
    prediction.apply(Log("late"))
    prediction.apply(Completed("failed", "late"))
    prediction.fail("late")
    prediction.expire()
    assert prediction.show("http://x/v1") == before
    assert prediction.status is Status.CANCELED
    assert len(prediction.events) == 2
