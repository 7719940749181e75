"""Prefix reuse on real models: right results whatever is shared, cancelled, paused or given up."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from lmtp_replicate.protocol.messages import Generate, Sampling, Score
from tests.engine.oracle import Oracle
from tests.engine.random_ops import random_op
from tests.engine.running import answers, running
from tests.engine.test_oracle import mix, oracle
from tests.engine.tiny_models import TINY, VOCABULARY, tiny_loaded

PACKED = [name for name, tiny in TINY.items() if tiny.path == "packed"]


class SharedOps:
    """Random ops whose prompts are parts of few stems, so that most begin as another did."""

    def __init__(self, random: Random) -> None:
        self._random = random
        trunk = self._ids(40)
        self._stems = [(*trunk[:cut], *self._ids(60)) for cut in (40, 25, 3)]

    def __call__(self, stream_id: int) -> Generate | Score:
        random = self._random
        stem = random.choice(self._stems)
        op = random_op(random, stream_id)
        prompt = (
            *stem[: random.choice([2, 20, 37, 40, 60, 60])],
            *self._ids(random.choice([0, 1])),
        )
        return replace(op, prompt=prompt)

    def _ids(self, count: int) -> tuple[int, ...]:
        return tuple(self._random.randrange(VOCABULARY) for _ in range(count))


@pytest.mark.parametrize("name", PACKED)
def test_streams_with_shared_prefixes_equal_the_oracle(name: str) -> None:
    """In ample memory, and in so little that streams are paused and kept prefixes given up."""
    random = Random(name)
    choices = ties = 0
    with running(tiny_loaded(name), kv_cache_bytes=1) as engine:
        per_token = engine.info().details["kv_bytes_per_token"]
    for kv_tokens, chunk_tokens, page_tokens, share_pages in (
        (8192, 512, 16, False),
        (200, 17, 4, False),
        (120, 5, 1, False),
        (8192, 512, 16, True),
        (120, 11, 4, True),
    ):
        with running(
            tiny_loaded(name),
            share_pages=share_pages,
            chunk_tokens=chunk_tokens,
            page_tokens=page_tokens,
            kv_cache_bytes=kv_tokens * per_token,
        ) as engine:
            judge = oracle(name, engine)
            for answer, cancelled in mix(engine, random, 18, SharedOps(random)):
                judge.check(answer.op, answer.items, cancelled=cancelled)
            assert engine.failure is None
            details = engine.info().details
        assert details["hit_tokens"] > 0
        assert details["kept_bytes"] == details["kept_tokens"] * per_token > 0
        assert (details["evictions"] > 0) == (kv_tokens < 8192)
        choices, ties = choices + judge.choices, ties + judge.ties
    assert choices > 20
    assert ties <= 0.01 * choices


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt_oss"])
def test_results_are_the_same_with_and_without_reuse(name: str) -> None:
    """Sampled ones too: a seed's draws go by position, not by what was run."""
    prefix = tuple(range(10, 60))
    sampling = Sampling(temperature=1.3, seed=5)
    ops = [
        *(Generate(n, (*prefix[: 40 + n], 3), 12, sampling, top_logprobs=2) for n in range(4)),
        *(Score(n, prefix, (n, 1, 2)) for n in range(4, 7)),
    ]
    results = []
    for reuse in (True, False):
        with running(tiny_loaded(name), reuse_prefixes=reuse) as engine:
            results.append([a.items for _ in range(2) for a in answers(engine, ops)])
            assert (engine.info().details["hit_tokens"] > 0) == reuse
            assert (engine.info().details["kept_tokens"] > 0) == reuse
    for with_reuse, without in zip(*results, strict=True):
        assert [item.token for item in with_reuse] == [item.token for item in without]
        for one, other in zip(with_reuse, without, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_the_fallback_remembers_nothing() -> None:
    with running(tiny_loaded("bloom")) as engine:
        judge: Oracle = oracle("bloom", engine)
        for _ in range(2):
            for answer in answers(engine, [Score(n, tuple(range(40)), (n, 5)) for n in range(3)]):
                judge.check(answer.op, answer.items)
        details = engine.info().details
    assert (details["hit_tokens"], details["kept_tokens"]) == (0, 0)
    assert details["run_tokens"] == details["prompt_tokens"] == 6 * 41


def test_a_fan_out_runs_its_prefix_once_for_all_connections() -> None:
    """Tokens that the model runs, by its own count."""
    loaded = tiny_loaded("llama")
    ran: list[int] = []
    prefix = tuple(n % VOCABULARY for n in range(200))
    ops = [Score(n, prefix, (n, 11, 12)) for n in range(3)]
    with running(loaded) as engine:
        loaded.model.register_forward_pre_hook(
            lambda _, __, kwargs: ran.append(kwargs["input_ids"].shape[1]), with_kwargs=True
        )
        answers(engine, ops)
        assert sum(ran) <= 200 + 3 * 3
        ran.clear()
        answers(engine, ops)
        assert sum(ran) == 3 * 3
        ran.clear()
        (text,) = answers(engine, [Generate(0, (*prefix, 1, 11), 5)])
        assert sum(ran) <= 1 + 5
        ran.clear()
        answers(engine, [Generate(0, (*prefix, 1, 11, *text.tokens, 9), 1)])
        assert sum(ran) == 2
