"""A replay's ops share what the recorded ones shared, and wait for what those waited for."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.recording import RecordedMask, RecordedOp, Recording, Shared
from benchmarks.replayed import Ids, Replayed, ReplayedOp
from lmtp_replicate.client import sharing

tokens = st.lists(st.integers(0, 2), max_size=6)
VOCABULARY = 16


def shared(prefixes: sharing.SharedPrefixes, op: int, given_ids: list[int]) -> Shared | None:
    found = prefixes.begin(op, given_ids)
    return found and Shared(op=found.op, tokens=found.tokens, output=found.output)


@given(st.lists(tokens, max_size=8))
def test_other_ids_share_the_same_beginnings(prompts: list[list[int]]) -> None:
    recorded, recording = sharing.SharedPrefixes(), Recording()
    for number, prompt in enumerate(prompts, 1):
        shares = shared(recorded, number, prompt)
        recording.ops[number] = RecordedOp(
            t=0, op=number, burst=number, query=1, kind="SCORE", prompt=len(prompt), shares=shares
        )
    replayed, found = Replayed(recording, Ids(VOCABULARY, "seed")), sharing.SharedPrefixes()
    for number, op in recording.ops.items():
        assert shared(found, number, replayed.begin(op).given) == op.shares


def test_generated_tokens_are_shared_as_they_are_this_time() -> None:
    first = RecordedOp(t=0, op=1, burst=1, query=1, kind="GENERATE", prompt=2)
    shares = Shared(op=1, tokens=4, output=2)
    second = RecordedOp(t=0, op=2, burst=2, query=1, kind="GENERATE", prompt=5, shares=shares)
    replayed = Replayed(Recording({1: first, 2: second}), Ids(VOCABULARY, "seed"))
    earlier = replayed.begin(first)
    for token in (7, 8, 9):
        earlier.take(token, is_generated=True)
    later = replayed.begin(second).given
    assert later[:4] == [*earlier.given, 7, 8]
    assert later[4] != 9
    assert len(later) == 5


def test_a_prompt_keeps_its_length_where_fewer_tokens_came() -> None:
    first = RecordedOp(t=0, op=1, burst=1, query=1, kind="GENERATE", prompt=2)
    shares = Shared(op=1, tokens=9, output=7)
    second = RecordedOp(t=0, op=2, burst=2, query=1, kind="GENERATE", prompt=12, shares=shares)
    replayed = Replayed(Recording({1: first, 2: second}), Ids(VOCABULARY, "seed"))
    earlier = replayed.begin(first)
    earlier.take(7, is_generated=True)
    assert len(replayed.begin(second).given) == 12


async def test_an_op_waits_for_tokens_or_for_the_end() -> None:
    op = ReplayedOp()
    two, end = (
        asyncio.ensure_future(op.reach(2, end=False)),
        asyncio.ensure_future(op.reach(2, end=True)),
    )
    states = []
    for step in (lambda: op.take(5, is_generated=True),) * 2 + (op.end,):
        step()
        await asyncio.sleep(0.01)
        states.append((two.done(), end.done()))
    assert states == [(False, False), (True, False), (True, True)]
    await asyncio.wait_for(op.reach(10, end=False), 5)  # it is over: more will not come


def test_masks_have_the_recorded_sizes() -> None:
    ids = Ids(VOCABULARY, "seed")
    white = ids.bias(RecordedMask(number=1, allow=3, deny=0, add=0))
    assert sorted(white.values()) == [100.0] * 3
    black = ids.bias(RecordedMask(number=2, deny=4, add=2))
    assert sorted(black.values()) == [-100.0] * 4 + [1.0] * 2
    assert black == ids.bias(RecordedMask(number=2, deny=4, add=2))
    assert black != ids.bias(RecordedMask(number=3, deny=4, add=2))
    assert len(ids.bias(RecordedMask(number=4, deny=64_000, add=0))) < VOCABULARY
