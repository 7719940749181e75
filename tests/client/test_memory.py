"""What the model has said is not asked for again, and equal ops in flight are asked once."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import pytest

from lmtp_replicate.client import TokenStream, connect
from lmtp_replicate.client.hub import process_hub
from lmtp_replicate.client.memory import VERSION_STANDS, Memory
from lmtp_replicate.errors import StreamError, TransportError
from lmtp_replicate.protocol.messages import FinishReason, Generate, Sampling, Score, TokenItem
from tests.client.replicate_double import ReplicateDouble
from tests.client.test_replicate import ENDPOINT, heard, quiet
from tests.holding import Hold
from tests.scripted_engine import processed

FLOAT32 = {"dtype": "float32", "quantization": None}


async def read(stream: TokenStream) -> list[TokenItem]:
    return [item async for item in stream]


async def scores(stream: TokenStream) -> list[tuple[int, float]]:
    return [(item.token, item.logprob) for item in await read(stream)]


def oracle(replicate: ReplicateDouble, prompt: list[int], scored: list[int]) -> list[Any]:
    """What the model itself says."""
    contexts = [prompt + scored[:i] for i in range(len(scored))]
    probe = Generate(0, (), 1)
    return [
        (token, pytest.approx(processed(replicate.engine._logits(context), probe)[token], abs=1e-9))
        for context, token in zip(contexts, scored, strict=True)
    ]


def model_is(replicate: ReplicateDouble, **facts: Any) -> None:
    replicate.engine._card = dataclasses.replace(replicate.engine._card, **facts)


# What is known


async def test_a_score_is_asked_for_once(replicate: ReplicateDouble) -> None:
    client = connect(ENDPOINT)
    first = await scores(client.score([5], [9, 7]))
    again = await read(connect(ENDPOINT).score([5], [9, 7]))
    assert [(item.token, item.logprob) for item in again] == first
    assert [item.finish_reason for item in again] == [None, FinishReason.STOP]
    assert await scores(client.score([5, 9], [7])) == first[1:]
    assert await scores(client.score([5], [9])) == first[:1]
    assert replicate.ops == [["MODEL_INFO", "SCORE"]]
    assert await scores(client.score([5], [9, 8])) == oracle(replicate, [5], [9, 8])
    assert replicate.ops[1:] == [["SCORE"]]


@pytest.mark.parametrize("temperature", [0.0, 2.0])
async def test_what_was_generated_is_known(replicate: ReplicateDouble, temperature: float) -> None:
    """Its rivals too. Log probabilities are those of temperature 1, whatever the op's is."""
    client = connect(ENDPOINT)
    made = client.generate([5], max_tokens=3, top_logprobs=4, temperature=temperature, top_p=0.5)
    tokens = [item.token for item in await read(made)]
    assert await scores(client.score([5], tokens)) == oracle(replicate, [5], tokens)
    rival = tokens[1] + 2
    assert await scores(client.score([5, tokens[0]], [rival])) == oracle(
        replicate, [5, tokens[0]], [rival]
    )
    assert len(replicate.predictions) == 1
    assert await scores(client.score([5], [tokens[0] + 9])) == oracle(
        replicate, [5], [tokens[0] + 9]
    )
    assert len(replicate.predictions) == 2


@pytest.mark.parametrize(
    "changed",
    [
        {"logit_bias": {6: 100, 7: 100}},
        {"logit_bias": {9: -100}},
        {"logit_bias": {9: 1.5}},
        {"repetition_penalty": 1.2},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
    ],
)
async def test_what_a_mask_or_a_penalty_has_changed_is_not(
    replicate: ReplicateDouble, changed: dict[str, Any]
) -> None:
    client = connect(ENDPOINT)
    (item,) = await read(client.generate([5], max_tokens=1, **changed))
    assert await scores(client.score([5], [item.token])) == oracle(replicate, [5], [item.token])
    assert replicate.ops[1:] == [["SCORE"]]


@pytest.mark.parametrize("facts", [{"dtype": "bfloat16"}, {"quantization": "4bit"}])
async def test_a_rounding_model_is_believed_in_scores_alone(
    replicate: ReplicateDouble, facts: dict[str, str]
) -> None:
    model_is(replicate, **facts)
    client = connect(ENDPOINT)
    await read(client.generate([5], max_tokens=1))
    for _ in range(2):
        await read(client.score([5], [6]))
    assert [ops[-1] for ops in replicate.ops] == ["GENERATE", "SCORE"]


async def test_without_memory(replicate: ReplicateDouble) -> None:
    client = connect(f"{ENDPOINT}?memory=off")
    for _ in range(2):
        assert await scores(client.score([5], [9])) == oracle(replicate, [5], [9])
    assert len(replicate.predictions) == 2


async def test_an_error_is_not_remembered(replicate: ReplicateDouble) -> None:
    client = connect(ENDPOINT)
    for _ in range(2):
        with pytest.raises(StreamError, match="not in the vocabulary"):
            await read(client.score([5], [6, 640]))
    assert len(replicate.predictions) == 2
    assert await scores(client.score([5], [6])) == oracle(replicate, [5], [6])


# Versions


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def learn(memory: Memory, op: Score, *logprobs: float) -> None:
    listener = memory.listener(op)
    assert listener is not None
    listener(items(op, *logprobs))


def items(op: Score, *logprobs: float) -> list[TokenItem]:
    return [TokenItem(0, t, p) for t, p in zip(op.scored, logprobs, strict=True)]


def known(memory: Memory, op: Score) -> list[float] | None:
    recalled = memory.recall(op)
    return None if recalled is None else [item.logprob for item in recalled]


def test_a_new_version_never_sees_old_values() -> None:
    memory, op = Memory(lambda: FLOAT32), Score(0, (5,), (6,))
    late = memory.listener(op)
    assert late is not None
    assert not memory.see_version("one", is_chosen=True)
    learn(memory, op, -0.1)
    assert known(memory, op) == [-0.1]
    assert memory.see_version("two", is_chosen=True)
    assert known(memory, op) is None
    late(items(op, -0.2))  # a prediction of the old version that still runs
    assert known(memory, op) is None
    learn(memory, op, -0.3)
    assert known(memory, op) == [-0.3]


def test_a_deployments_version_is_believed_for_a_while() -> None:
    clock = Clock()
    memory, op = Memory(lambda: FLOAT32, now=clock), Score(0, (5,), (6,))
    memory.see_version("one", is_chosen=False)
    learn(memory, op, -0.1)
    clock.now = VERSION_STANDS + 1
    assert known(memory, op) is None
    memory.see_version("one", is_chosen=False)
    assert known(memory, op) == [-0.1]


def test_nothing_is_known_before_the_version_is() -> None:
    memory, op = Memory(lambda: FLOAT32), Score(0, (5,), (6,))
    learn(memory, op, -0.1)
    assert known(memory, op) is None


def test_a_generation_counts_once_the_card_has_come() -> None:
    card: dict[str, Any] = {}
    memory = Memory(lambda: card)
    memory.see_version("one", is_chosen=True)
    listener = memory.listener(Generate(0, (5,), 2))
    assert listener is not None
    card |= FLOAT32
    listener([TokenItem(0, 6, -0.1), TokenItem(0, 7, -0.2)])
    assert known(memory, Score(0, (5,), (6, 7))) == [-0.1, -0.2]
    assert memory.listener(Generate(0, (5,), 2, Sampling(presence_penalty=1.0))) is None


def test_what_comes_before_the_card_is_in_its_place() -> None:
    card: dict[str, Any] = {}
    memory = Memory(lambda: card)
    memory.see_version("one", is_chosen=True)
    listener = memory.listener(Generate(0, (5,), 2))
    assert listener is not None
    listener([TokenItem(0, 6, -0.1)])
    card |= FLOAT32
    listener([TokenItem(0, 7, -0.2)])
    assert known(memory, Score(0, (5, 6), (7,))) == [-0.2]
    assert known(memory, Score(0, (5,), (7,))) is None


async def test_a_deployment_that_changes_its_version(replicate: ReplicateDouble) -> None:
    """The first prediction that names it asks for the new card, and old scores are gone."""
    client = connect("replicate:deployment/org/prod")
    old = await scores(client.score([5], [9]))
    assert await scores(client.score([5], [9])) == old
    assert (await client.model_info())["model"] == "scripted"
    replicate.deployed, logits = "7" * 64, replicate.engine._logits
    model_is(replicate, model="newer")
    replicate.engine._logits = lambda context: [-value for value in logits(context)]
    await read(client.generate([30], max_tokens=1))
    new = await scores(client.score([5], [9]))
    assert new == oracle(replicate, [5], [9]) != old
    assert (await client.model_info())["model"] == "newer"


# Equal ops in flight


@pytest.fixture
def held(replicate: ReplicateDouble) -> Iterator[Callable[[], None]]:
    """The engine stands still until this is called."""
    replicate.engine.gate.clear()
    yield replicate.engine.gate.set
    replicate.engine.gate.set()


async def test_equal_ops_in_flight_are_asked_once(replicate: ReplicateDouble, held) -> None:
    clients = [connect(ENDPOINT) for _ in range(3)]
    reading = [asyncio.ensure_future(read(c.generate([5], max_tokens=3))) for c in clients]
    reading += [asyncio.ensure_future(read(c.score([5], [9]))) for c in clients]
    other = asyncio.ensure_future(read(clients[0].generate([5], max_tokens=4)))
    await asyncio.to_thread(replicate.wait_for, lambda: bool(replicate.predictions))
    held()
    answers = await asyncio.gather(*reading)
    assert [[item.token for item in answer] for answer in answers] == [[6, 7, 8]] * 3 + [[9]] * 3
    assert len(await other) == 4
    assert sorted(chain(*replicate.ops)) == ["GENERATE", "GENERATE", "MODEL_INFO", "SCORE"]


async def test_one_who_comes_late_gets_all(replicate: ReplicateDouble) -> None:
    replicate.engine._step_seconds = 0.01
    early = connect(ENDPOINT).generate([5], max_tokens=40)
    await anext(early)
    assert [item.token for item in await read(connect(ENDPOINT).generate([5], max_tokens=40))] == [
        *range(6, 46)
    ]
    assert len(replicate.predictions) == 1
    assert len(await read(early)) == 39


async def test_one_who_leaves_ends_nothing_for_the_other(replicate: ReplicateDouble) -> None:
    replicate.engine._step_seconds = 0.01
    first, second = (connect(ENDPOINT).generate([5], max_tokens=40) for _ in range(2))
    await asyncio.gather(anext(first), anext(second))
    first.close()
    assert len(await read(second)) == 39
    assert len(replicate.predictions) == 1
    assert not replicate.cancelled


async def test_the_last_who_leaves_ends_it(replicate: ReplicateDouble) -> None:
    replicate.engine._step_seconds = 0.02
    streams = [connect(ENDPOINT).generate([5], max_tokens=400) for _ in range(2)]
    await asyncio.gather(*map(anext, streams))
    for stream in streams:
        stream.close()
    await asyncio.to_thread(replicate.wait_for, lambda: replicate.cancelled == ["prediction0"])
    # What nobody read to its end is asked for anew.
    replicate.engine._step_seconds = 0.0
    assert len(await read(connect(ENDPOINT).generate([5], max_tokens=400))) == 400
    await quiet(replicate)


@pytest.mark.parametrize("settings", [{"temperature": 1.0}, {"temperature": 1.0, "seed": 7}])
async def test_samples_are_draws_of_their_own(
    replicate: ReplicateDouble, held, settings: dict[str, Any]
) -> None:
    reading = [
        asyncio.ensure_future(read(connect(ENDPOINT).generate([5], max_tokens=3, **settings)))
        for _ in range(2)
    ]
    await asyncio.to_thread(replicate.wait_for, lambda: bool(replicate.predictions))
    held()
    await asyncio.gather(*reading)
    assert list(chain(*replicate.ops)).count("GENERATE") == 2


async def test_without_joining(replicate: ReplicateDouble, held) -> None:
    clients = [connect(f"{ENDPOINT}?join=off") for _ in range(2)]
    reading = [asyncio.ensure_future(read(c.score([5], [9]))) for c in clients]
    await asyncio.to_thread(replicate.wait_for, lambda: bool(replicate.predictions))
    held()
    first, second = await asyncio.gather(*reading)
    assert [item.logprob for item in first] == [item.logprob for item in second]
    assert list(chain(*replicate.ops)).count("SCORE") == 2


async def test_each_meets_an_error_of_its_own(replicate: ReplicateDouble, held) -> None:
    clients = [connect(ENDPOINT) for _ in range(2)]
    reading = [asyncio.ensure_future(read(c.generate([5], max_tokens=9))) for c in clients]
    await asyncio.to_thread(replicate.wait_for, lambda: bool(replicate.predictions))
    replicate.faults.failure = "out of memory"
    held()
    errors = await asyncio.gather(*reading, return_exceptions=True)
    assert all("out of memory" in str(error) for error in errors)
    assert errors[0] is not errors[1]
    assert errors[0].__traceback__ is not errors[1].__traceback__  # type: ignore[union-attr]


async def test_a_client_that_closes_fails_its_own_reader_alone(replicate: ReplicateDouble) -> None:
    held = Hold(replicate.engine, 15)
    closing, staying = connect(ENDPOINT), connect(ENDPOINT)
    ended, other = (client.generate([5], max_tokens=40) for client in (closing, staying))
    await asyncio.gather(anext(ended), anext(other))
    closing.close()
    await heard()
    held.go_on.set()
    with pytest.raises(TransportError, match="the client was closed"):
        await read(ended)
    assert len(await read(other)) == 39


async def test_nothing_of_a_stream_stays(replicate: ReplicateDouble) -> None:
    """Neither of one that was read, nor of one that was left, that failed or that was joined."""
    replicate.engine._step_seconds = 0.002
    for _ in range(3):
        clients = [connect(ENDPOINT) for _ in range(2)]
        await asyncio.gather(*(read(client.generate([5], max_tokens=4)) for client in clients))
        left = clients[0].generate([5], max_tokens=400, temperature=1.0)
        await anext(left)
        left.close()
        with pytest.raises(StreamError, match="vocabulary"):
            await read(clients[1].score([5], [640]))
    await quiet(replicate)
    assert len(process_hub()._sparing.streams) == 0
