"""What one greedy op was told answers the others that come by, whatever becomes of the streams, and
each is told exactly what the model says."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lmtp_replicate
from lmtp_replicate.client import TokenStream, connect
from lmtp_replicate.client.hub import close_process_hub
from lmtp_replicate.client.memory import VERSION_STANDS
from lmtp_replicate.client.settings import Savings
from lmtp_replicate.errors import TransportError
from lmtp_replicate.protocol.messages import Generate
from tests.client.greedy_place import EOS, Place, answer, check
from tests.client.replicate_double import ReplicateDouble
from tests.client.test_replicate import ENDPOINT, quiet

MOVES = st.one_of(
    st.tuples(st.just("ask"), st.integers(-1, 8), st.lists(st.integers(0, EOS), max_size=2),
              st.integers(1, 7), st.integers(0, 2), st.booleans()),
    st.tuples(st.sampled_from(["step", "step", "step", "fail", "leave"]), st.integers(0, 9),
              st.integers(1, 3)),
    st.tuples(st.sampled_from(["version", "later"])),
)  # fmt: skip


@given(st.lists(MOVES, max_size=40), st.booleans(), st.booleans())
def test_whatever_happens_each_is_told_what_the_model_says(moves, memory: bool, join: bool) -> None:
    place = Place(Savings(memory=memory, join=join))
    for move in moves:
        match move:
            case ("ask", along, then, count, best, early):
                # Texts on the path of the others, or shortly beside it.
                path = [item.token for item in answer(Generate(0, (1,), 8), place.version)]
                prompt = (1, *path[:along], *then) if along >= 0 else tuple(then)
                number = len(place.readers)
                place.ask(Generate(number, prompt, count, top_logprobs=best), may_end_early=early)
            case ("step", index, count) if place.running:
                place.step([*place.running.values()][index % len(place.running)], count)
            case ("fail", index, _) if place.running:
                place.fail([*place.running.values()][index % len(place.running)])
            case ("leave", index, _) if place.readers:
                reader = place.readers[index % len(place.readers)]
                if not (reader.is_over or reader.is_abandoned):
                    place.leave(reader)
            case ("version",):
                place.see(place.version + 1)
            case ("later",):
                place.clock.now += VERSION_STANDS + 1
    place.finish()
    for reader in place.readers:
        check(place, reader)
    assert len(place.sparing.streams) == 0


# Through the whole client


async def read(stream: TokenStream) -> list[int]:
    return [item.token async for item in stream]


async def test_clients_of_several_loops_follow_one_stream(replicate: ReplicateDouble) -> None:
    replicate.engine._step_seconds = 0.01
    leading = connect(ENDPOINT).generate([5], max_tokens=40)
    assert [(await anext(leading)).token for _ in range(3)] == [6, 7, 8]

    async def follow(ahead: list[int]) -> list[int]:
        return await read(connect(ENDPOINT).generate([*range(5, 9), *ahead], max_tokens=9))

    followers = [asyncio.to_thread(asyncio.run, follow(ahead)) for ahead in ([], [9], [9, 10])]
    answers = await asyncio.gather(*followers)
    assert answers == [[*range(9 + n, 18 + n)] for n in range(3)]
    assert await read(leading) == [*range(9, 46)]
    assert len(replicate.predictions) == 1


async def test_the_leading_client_closes(replicate: ReplicateDouble) -> None:
    replicate.engine._step_seconds = 0.01
    closing = connect(ENDPOINT)
    leading = closing.generate([5], max_tokens=40)
    await anext(leading)
    following = connect(ENDPOINT).generate([5, 6], max_tokens=20)
    assert (await anext(following)).token == 7
    closing.close()
    assert await read(following) == [*range(8, 27)]
    assert len(replicate.predictions) == 1
    await quiet(replicate)


async def test_who_follows_a_follower_ends_too_when_the_hub_closes(
    replicate: ReplicateDouble,
) -> None:
    """One after the other asks by itself when what it follows has ended."""
    before = lmtp_replicate.stats()
    replicate.engine._step_seconds = 0.01
    leading = connect(ENDPOINT).generate([5], max_tokens=300)
    await anext(leading)
    streams = [connect(ENDPOINT).generate([5, 6, 7][:n], max_tokens=250) for n in (2, 3)]
    for stream in streams:
        await anext(stream)
    await asyncio.to_thread(close_process_hub)
    for stream in (leading, *streams):
        with pytest.raises(TransportError, match="was closed"):
            await read(stream)
    assert [p.status for p in replicate.predictions] == ["canceled"]
    assert (lmtp_replicate.stats() - before).joined == 2


async def test_another_hub_knows_nothing(replicate: ReplicateDouble) -> None:
    for _ in range(2):
        for _ in range(2):
            assert await read(connect(ENDPOINT).generate([5], max_tokens=4)) == [6, 7, 8, 9]
        close_process_hub()
    assert len(replicate.predictions) == 2


async def test_without_memory_and_joining_all_is_asked_for(replicate: ReplicateDouble) -> None:
    client = connect(f"{ENDPOINT}?memory=off&join=off")
    for prompt in ([5], [5, 6]):
        await read(client.generate(prompt, max_tokens=3))
    assert len(replicate.predictions) == 2
