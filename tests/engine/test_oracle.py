"""The engine against plain transformers: any mix of streams, any schedule, every architecture."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

import pytest

from lmtp_replicate.engine.torch_engine import TorchEngine
from lmtp_replicate.protocol.messages import Generate, Sampling, Score
from tests.engine.oracle import Oracle
from tests.engine.random_ops import random_op
from tests.engine.running import Answer, answers, running
from tests.engine.tiny_models import TINY, tiny_loaded, tiny_network


def oracle(name: str, engine: TorchEngine, **overrides: object) -> Oracle:
    card = engine.info()
    limit = min(card.context_length, card.details["kv_tokens"])
    return Oracle(tiny_network(name, **overrides), tiny_loaded(name), limit)


def mix(
    engine: TorchEngine,
    random: Random,
    count: int,
    make: Callable[[int], Generate | Score] | None = None,
) -> list[tuple[Answer, bool]]:
    """`count` random streams, each submitted at once or when an earlier one has a certain item,
    some cancelled when they have one; with whether they were cancelled."""
    make = make or partial(random_op, random)
    streams = [Answer(make(index)) for index in range(count)]
    cancelled = [random.random() < 0.2 for _ in streams]

    def start(answer: Answer) -> None:
        answer.ticket = engine.submit(answer.op, answer)

    def cancel(answer: Answer) -> None:
        assert answer.ticket is not None
        answer.ticket.cancel()

    for index, answer in enumerate(streams):
        if cancelled[index]:
            answer.after[random.choice([1, 3])] = lambda a=answer: cancel(a)
    first = max(1, count // 3)
    for index in range(first, count):
        earlier = streams[random.randrange(index - first, index)]
        before = earlier.after.get(1, lambda: None)
        earlier.after[1] = lambda b=before, a=streams[index]: (b(), start(a))
    for answer in streams[:first]:
        start(answer)
    for answer in streams:
        answer.wait()
    return list(zip(streams, cancelled, strict=True))


SETTINGS = ((512, 16, 128, "all"), (7, 4, 5, "none"), (1, 1, 20, "all"))


@pytest.mark.parametrize("name", TINY)
def test_random_mixes_equal_the_one_by_one_oracle(name: str) -> None:
    random = Random(name)
    choices = ties = 0
    for chunk_tokens, page_tokens, max_streams, pack_linears in SETTINGS:
        with running(
            tiny_loaded(name),
            chunk_tokens=chunk_tokens,
            page_tokens=page_tokens,
            max_streams=max_streams,
            pack_linears=pack_linears,
        ) as engine:
            assert engine.info().path == TINY[name].path
            judge = oracle(name, engine)
            for answer, cancelled in mix(engine, random, 14):
                judge.check(answer.op, answer.items, cancelled=cancelled)
            assert engine.failure is None
        choices, ties = choices + judge.choices, ties + judge.ties
    assert choices > 20
    assert ties <= 0.01 * choices


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "lfm2"])
def test_results_are_the_same_when_memory_is_short(name: str) -> None:
    """Streams wait for pages and are paused and run again; each still gets the right tokens."""
    ops = [
        Generate(index, tuple(range(index + 1, index + 9)), 40, Sampling(), top_logprobs=2)
        for index in range(8)
    ]
    with running(tiny_loaded(name), page_tokens=4, kv_cache_bytes=1) as engine:
        per_token = engine.info().details["kv_bytes_per_token"]
    with running(tiny_loaded(name), page_tokens=4, kv_cache_bytes=96 * per_token) as engine:
        assert engine.info().details["kv_tokens"] == 96
        judge = oracle(name, engine)
        for answer in answers(engine, ops):
            judge.check(answer.op, answer.items)
        assert engine.info().details["pauses"] > 0
    judge.assert_few_ties()
