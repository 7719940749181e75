"""The template's runner on the real Cog runtime: live, many at once, cancellable, robust.

The order of things is proven by pipes that hold the engine, not by clocks; see `scripted_runner`.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lmtp_replicate.protocol.codecs import LineDecoder, encode_batch
from lmtp_replicate.protocol.messages import (
    Cancel,
    Dialect,
    Ending,
    ErrorItem,
    FinishReason,
    Generate,
    Info,
    Item,
    ModelInfo,
    Op,
    Score,
    TokenItem,
    Usage,
)
from tests.serving.coglet import Coglet, Event, coglet, scripted_work_directory

pytestmark = pytest.mark.slow


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Coglet]:
    with coglet(scripted_work_directory(tmp_path / "work")) as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coglet]:
    """One runtime for the tests that leave it as it was."""
    with coglet(scripted_work_directory(tmp_path_factory.mktemp("shared") / "work")) as running:
        yield running


def batch(*ops: Op) -> str:
    return encode_batch(ops, model="scripted")


def items(events: list[Event]) -> list[Item]:
    decoder = LineDecoder()
    chunks = [event.data["chunk"] for event in events if event.kind == "output"]
    return [item for chunk in chunks for item in decoder.feed(chunk)] + decoder.finish()


def tokens(found: list[Item]) -> list[int]:
    return [item.token for item in found if isinstance(item, TokenItem)]


class Hold:
    """Holds the engine before it makes a token; see `scripted_runner`."""

    def __init__(self, runtime: Coglet, place: str) -> None:
        self._pipe = runtime.folder / f"hold-{place}"
        self._end: int | None = None
        os.mkfifo(self._pipe)

    async def reached(self) -> None:
        """Wait until the engine stands there."""
        opening = asyncio.ensure_future(asyncio.to_thread(os.open, self._pipe, os.O_WRONLY))
        done, _ = await asyncio.wait([opening], timeout=30)
        if not done:
            os.close(os.open(self._pipe, os.O_RDONLY))  # let go of our own thread
        self._end = await opening
        assert done, f"the engine did not come to {self._pipe.name}"

    async def release(self) -> None:
        """Let the engine go on, when it stands there."""
        if self._end is None:
            await self.reached()
        assert self._end is not None
        self._pipe.unlink()  # first, since other streams may come to the same place
        os.close(self._end)


def made(runtime: Coglet, tag: int) -> int:
    """How many tokens the engine has begun for the stream whose prompt begins with `tag`."""
    lines = (runtime.folder / "tokens.log").read_text().splitlines()
    return sum(line.startswith(f"{tag} ") for line in lines)


async def first_output(events: AsyncIterator[Event]) -> Event:
    async for event in events:
        if event.kind == "output":
            return event
    raise AssertionError("no output")


@asynccontextmanager
async def others(runtime: Coglet, *tags: int, tokens: int) -> AsyncIterator[list[Started]]:
    """Further predictions that all are in the engine: each has answered a MODEL_INFO that comes
    after its GENERATE, which needs no step of the engine."""
    async with AsyncExitStack() as stack:
        started = []
        for tag in tags:
            ops = batch(Generate(1, (tag,), tokens), ModelInfo(2))
            inputs = {"ops_batch_json": ops, "encoding": "lmtp-extended"}
            events = await stack.enter_async_context(runtime.predict(**inputs))
            started.append(Started(events))
            await started[-1].until(Info)
        yield started


class Started:
    """A running prediction and what has been read of it."""

    def __init__(self, events: AsyncIterator[Event]) -> None:
        self._events = events
        self.seen: list[Event] = []

    async def until(self, kind: type[Item]) -> None:
        """Read until there is an item of this kind."""
        while not any(isinstance(item, kind) for item in items(self.seen)):
            self.seen.append(await anext(self._events))

    async def finish(self) -> list[int]:
        """Read to the end; all tokens."""
        self.seen += [event async for event in self._events]
        assert self.seen[-1].data["status"] == "succeeded"
        return tokens(items(self.seen))


async def test_the_first_chunk_is_read_before_the_fortieth_token_is_made(runtime: Coglet) -> None:
    """Of 200, while four other predictions run."""
    warm = Hold(runtime, "9-1")
    hold = Hold(runtime, "9-40")  # before token 40 of the prompt [9]
    async with (
        runtime.predict(ops_batch_json=batch(Generate(1, (9,), 200))) as events,
        others(runtime, 11, 12, 13, 14, tokens=200) as four,
    ):
        await warm.release()
        first = await first_output(events)
        await hold.release()
        rest = [event async for event in events]
        assert [len(await other.finish()) for other in four] == [200] * 4
    assert rest[-1].data["status"] == "succeeded"
    assert len(tokens(items([first, *rest]))) == 200


async def test_predictions_run_at_the_same_time(shared: Coglet) -> None:
    """All are in the engine before the first of them has made a token."""
    hold = Hold(shared, "9-1")
    async with others(shared, 9, 10, 11, tokens=20) as three:
        await hold.release()
        for other, tag in zip(three, (9, 10, 11), strict=True):
            assert await other.finish() == list(range(tag + 1, tag + 21))


async def test_a_cancelled_prediction_leaves_the_engine_and_the_others_run_on(
    runtime: Coglet,
) -> None:
    warm = Hold(runtime, "9-1")
    hold = Hold(runtime, "9-20")
    inputs = {"ops_batch_json": batch(Generate(1, (9,), 500)), "encoding": "lmtp-extended"}
    async with runtime.predict(**inputs) as events:
        start = await anext(events)
        async with others(runtime, 11, 12, 13, tokens=60) as three:
            await warm.release()
            seen = [await first_output(events)]
            await hold.reached()
            await runtime.cancel(start.data["id"])
            seen += [event async for event in events]  # ends while the engine stands still
            before = made(runtime, 9)
            await hold.release()
            for other, tag in zip(three, (11, 12, 13), strict=True):
                expected = [2 + (token - 2) % 62 for token in range(tag + 1, tag + 61)]
                assert await other.finish() == expected
    assert before == 20
    assert made(runtime, 9) <= before + 2
    assert seen[-1].data["status"] == "canceled"
    found = items(seen)
    assert tokens(found) == list(range(10, 29))  # what there was is kept
    assert Ending(1, FinishReason.CANCELLED) in found


async def test_a_client_that_leaves_takes_its_prediction_along(runtime: Coglet) -> None:
    hold = Hold(runtime, "9-20")
    async with runtime.predict(ops_batch_json=batch(Generate(1, (9,), 500))) as events:
        await first_output(events)
        await hold.reached()
    await asyncio.to_thread(runtime.wait_for_log, "the stream ended early")  # nobody reads it
    await hold.release()
    await runtime.answer(ops_batch_json=batch(Generate(1, (11,), 40)))
    assert made(runtime, 9) <= 22


async def test_upstream_gets_endings_it_understands_when_cancelled(runtime: Coglet) -> None:
    hold = Hold(runtime, "9-20")
    async with runtime.predict(ops_batch_json=batch(Generate(1, (9,), 500))) as events:
        start = await anext(events)
        await hold.reached()
        seen = [await first_output(events)]
        await runtime.cancel(start.data["id"])
        seen += [event async for event in events]
        await hold.release()
    last = items(seen)[-1]
    assert isinstance(last, TokenItem) and last.finish_reason is FinishReason.LENGTH


async def test_a_batch_of_everything_in_both_dialects(shared: Coglet) -> None:
    ops = batch(Generate(1, (9,), 3), Score(2, (9,), (10, 11)), ModelInfo(3), Cancel(1))
    for encoding in Dialect:
        async with shared.predict(ops_batch_json=ops, encoding=encoding) as events:
            seen = [event async for event in events]
        assert seen[-1].data["status"] == "succeeded"
        found = items(seen)
        assert tokens([item for item in found if getattr(item, "stream_id", 0) == 1]) == [
            10,
            11,
            12,
        ]
        assert tokens([item for item in found if getattr(item, "stream_id", 0) == 2]) == [10, 11]
        (info,) = [item for item in found if isinstance(item, Info)]
        assert info.model_info["model"] == "scripted"
        usages = [item for item in found if isinstance(item, Usage)]
        assert len(usages) == (1 if encoding is Dialect.EXTENDED else 0)
        if usages:
            assert usages[0].usage["output_tokens"] == 3


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({}, "prompt"),
        ({"prompt": "abc", "ops_batch_json": "[]"}, "not both"),
        ({"ops_batch_json": "garbage"}, "JSON"),
        ({"ops_batch_json": '{"GENERATE": 1}'}, "list"),
    ],
)
async def test_inputs_without_sense_fail_with_a_reason(
    inputs: dict[str, Any], reason: str, shared: Coglet
) -> None:
    failed = await shared.answer(**inputs)
    assert failed["status"] == "failed"
    assert reason in failed["error"]
    assert (await shared.answer(prompt="abc", temperature=0))["status"] == "succeeded"


async def test_a_garbage_op_fails_alone(shared: Coglet) -> None:
    ops = json.loads(batch(Generate(1, (9,), 3)))
    ops += [["GENERATE", {"stream_id": 2, "prompt": "text"}], ["DANCE", {"stream_id": 3}], 17]
    async with shared.predict(ops_batch_json=json.dumps(ops)) as events:
        found = items([event async for event in events])
    assert tokens(found) == [10, 11, 12]
    errors = {item.stream_id: item.error for item in found if isinstance(item, ErrorItem)}
    assert set(errors) == {2, 3, None}
    assert "prompt" in errors[2]


async def test_a_crash_of_the_engine_ends_streams_and_turns_health_red(runtime: Coglet) -> None:
    (runtime.folder / "crash-9-10").write_text("out of memory")
    async with runtime.predict(ops_batch_json=batch(Generate(1, (9,), 100))) as events:
        found = items([event async for event in events])
    last = found[-1]
    assert isinstance(last, TokenItem) and last.finish_reason is FinishReason.LENGTH
    assert tokens(found) == list(range(10, 19))
    later = await runtime.answer(ops_batch_json=batch(Generate(1, (9,), 2)))
    assert later["status"] == "failed" and "out of memory" in later["error"]
    health = await runtime.health()
    assert health["status"] == "UNHEALTHY"


async def test_a_killed_worker_fails_its_predictions_and_says_so(runtime: Coglet) -> None:
    (runtime.folder / "die-9-10").touch()
    hold = Hold(runtime, "9-10")
    async with runtime.predict(ops_batch_json=batch(Generate(1, (9,), 100))) as events:
        seen = [await first_output(events)]
        await hold.release()
        seen += [event async for event in events]
    assert seen[-1].data["status"] == "failed"
    assert tokens(items(seen))  # what had come stays


async def test_text_is_streamed_and_the_other_completions_follow(shared: Coglet) -> None:
    hold = Hold(shared, "0-20")
    inputs = {"prompt": "a", "n": 2, "max_length": 30, "temperature": 0, "seed": 7}
    async with shared.predict(**inputs) as events:
        first = await first_output(events)
        await hold.release()
        rest = [event async for event in events]
    assert rest[-1].data["status"] == "succeeded"
    text = "".join(event.data["chunk"] for event in [first, *rest] if event.kind == "output")
    letters = "bcdefghijklmnopqrstuvwxyz ABCD"
    assert text == f"{letters}\n--- 2 ---\n{letters}"
