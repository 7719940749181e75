"""What a user of the engine notices, stream by stream: endings, errors, cancel, crash, close."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from lmtp_replicate.engine.plan import Plan
from lmtp_replicate.engine.step_loop import TOO_LARGE
from lmtp_replicate.engine.torch_engine import TorchEngine
from lmtp_replicate.protocol.masks import Mask, bitset
from lmtp_replicate.protocol.messages import (
    Ending,
    ErrorItem,
    FinishReason,
    Generate,
    Sampling,
    Score,
    StreamItem,
    TokenItem,
)
from tests.engine.running import PATIENCE, Answer, answers, running, submit
from tests.engine.test_oracle import oracle
from tests.engine.tiny_models import BOS, EOS, VOCABULARY, tiny_loaded, tiny_network

NO_EOS = Mask(forbidden=bitset(EOS))
BROKEN = 90
LONG = {"max_tokens": 200, "mask": NO_EOS}


@pytest.fixture(scope="module")
def engine() -> Iterator[TorchEngine]:
    with running(tiny_loaded("llama")) as engine:
        yield engine


def last(answer: Answer) -> StreamItem:
    return answer.wait()[-1]


def steps(engine: TorchEngine) -> int:
    taken: int = engine.info().details["steps"]
    return taken


@pytest.mark.parametrize("eos", EOS)
def test_any_eos_ends_the_stream_and_is_an_item(engine: TorchEngine, eos: int) -> None:
    only = Mask(allowed=bitset([eos]))
    (answer,) = answers(engine, [Generate(1, (3,), 5, mask=only)])
    assert answer.items == [TokenItem(1, eos, 0.0, {eos: 0.0}, FinishReason.STOP)]


@pytest.mark.parametrize("count", [1, 2, 17])
def test_max_tokens_is_exact(engine: TorchEngine, count: int) -> None:
    (answer,) = answers(engine, [Generate(1, (3,), count, mask=NO_EOS)])
    reasons = [item.finish_reason for item in answer.items if isinstance(item, TokenItem)]
    assert reasons == [None] * (count - 1) + [FinishReason.LENGTH]


def test_a_stream_ends_where_the_context_ends() -> None:
    with running(tiny_loaded("llama", context_length=12)) as engine:
        fits, fills, score, long_score = answers(
            engine,
            [
                Generate(0, (3,) * 9, 50, mask=NO_EOS),
                Generate(1, (3,) * 12, 1),
                Score(2, (3,) * 9, (4,) * 3),
                Score(3, (3,) * 9, (4,) * 4),
            ],
        )
    assert len(fits.tokens) == 3
    assert last(fits).finish_reason is FinishReason.LENGTH
    assert fills.error == (
        "prompt: its 12 tokens fill the model's context of 12 tokens, so that no token can follow"
    )
    assert len(score.tokens) == 3
    assert "13 together, more than the model's context of 12" in long_score.error


def test_what_the_memory_cannot_hold_is_refused_and_what_outgrows_it_ends() -> None:
    with running(tiny_loaded("llama"), kv_cache_bytes=1, page_tokens=16) as engine:
        assert engine.info().details["kv_tokens"] == 16
        grows, refused, score = answers(
            engine,
            [
                Generate(0, (3,) * 10, 50, mask=NO_EOS),
                Generate(1, (3,) * 16, 1),
                Score(2, (3,) * 10, (4,) * 10),
            ],
        )
    assert len(grows.tokens) == 6
    assert last(grows).finish_reason is FinishReason.LENGTH
    assert "prompt: 16 tokens do not fit into the memory for keys and values" in refused.error
    assert "kv_cache_bytes" in score.error


@pytest.mark.parametrize("kind", [Generate, Score])
def test_an_empty_prompt_starts_from_bos_and_that_is_no_item(
    engine: TorchEngine, kind: type[Generate | Score]
) -> None:
    rest: Any = (4,) if kind is Generate else ((9, 10),)
    empty, explicit = answers(engine, [kind(1, (), *rest), kind(1, (BOS,), *rest)])
    assert empty.tokens == explicit.tokens
    assert [item.logprob for item in empty.items] == pytest.approx(
        [item.logprob for item in explicit.items], abs=1e-5
    )


def test_an_empty_prompt_without_bos_starts_from_eos_and_without_either_is_an_error() -> None:
    with running(tiny_loaded("llama", bos_token_id=None)) as engine:
        empty, explicit = answers(engine, [Generate(1, (), 4), Generate(2, (EOS[0],), 4)])
    assert empty.tokens == explicit.tokens
    with running(tiny_loaded("llama", bos_token_id=None, eos_token_ids=())) as engine:
        assert "neither a BOS nor an EOS" in submit(engine, Generate(1, (), 4)).error


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (Generate(1, (3, VOCABULARY), 4), f"prompt[1]: {VOCABULARY} is not in the vocabulary"),
        (Generate(1, (3, 10**30), 4), "prompt[1]: 1000000"),
        (Generate(1, (-1,), 4), "prompt[0]: -1 is not in the vocabulary"),
        (Score(1, (3,), (4, 5, VOCABULARY)), f"scored[2]: {VOCABULARY} is not"),
        (Score(1, (VOCABULARY,), ()), f"prompt[0]: {VOCABULARY} is not"),
        (Generate(1, (3,), 0), "max_tokens: must be at least 1, not 0"),
        (Generate(1, (3,), 4, mask=Mask(allowed=bitset([VOCABULARY]))), "the mask leaves no"),
        (Generate(1, (3,), 4, mask=Mask(allowed=b"\0")), "the mask leaves no"),
    ],
)
def test_a_bad_op_is_an_error_on_its_own_stream(
    engine: TorchEngine, op: Generate | Score, message: str
) -> None:
    neighbour = submit(engine, Generate(2, (3,), 40, mask=NO_EOS))
    bad = submit(engine, op)
    assert message in bad.error
    assert len(bad.items) == 1
    neighbour.wait()
    assert len(neighbour.tokens) == 40
    assert engine.failure is None


def test_an_empty_score_ends_at_once(engine: TorchEngine) -> None:
    assert submit(engine, Score(4, (3,), ())).wait() == [Ending(4, FinishReason.STOP)]


def test_scores_of_eos_are_ordinary(engine: TorchEngine) -> None:
    answer = submit(engine, Score(4, (3,), (EOS[0], 9, EOS[1])))
    assert [item.finish_reason for item in answer.wait()] == [None, None, FinishReason.STOP]  # type: ignore[union-attr]


def test_a_seed_gives_the_same_tokens_whatever_the_batch_and_the_cut() -> None:
    op = Generate(1, (3, 4, 5), 30, Sampling(temperature=1.5, seed=11), NO_EOS)
    others = [Generate(n, (n,) * n, 30, Sampling(temperature=2.0), NO_EOS) for n in range(2, 9)]
    with running(tiny_loaded("llama")) as engine:
        (alone,) = answers(engine, [op])
        first, *_ = answers(engine, [op, *others])
        *_, behind = answers(engine, [*others, op])
        # LMQL cuts one generation into several ops: the seed goes by absolute position.
        (start,) = answers(engine, [Generate(1, op.prompt, 12, op.sampling, NO_EOS)])
        (rest,) = answers(
            engine, [Generate(1, (*op.prompt, *start.tokens), 18, op.sampling, NO_EOS)]
        )
        other_seed = Sampling(temperature=1.5, seed=12)
        (different,) = answers(engine, [Generate(1, op.prompt, 30, other_seed, NO_EOS)])
    assert first.tokens == behind.tokens == alone.tokens
    assert [*start.tokens, *rest.tokens] == alone.tokens
    assert different.tokens != alone.tokens


def test_without_a_seed_every_stream_draws_for_itself(engine: TorchEngine) -> None:
    op = Generate(1, (3,), 30, Sampling(temperature=2.0), NO_EOS)
    one, other = answers(engine, [op, op])
    assert one.tokens != other.tokens


def test_cancel_takes_effect_within_two_steps_and_only_on_its_stream(engine: TorchEngine) -> None:
    neighbours = [submit(engine, Generate(n, (3, n), 100, mask=NO_EOS)) for n in (1, 2, 3)]
    answer = Answer(Generate(0, (3,), **LONG))
    at: list[int] = []
    ended: list[int] = []

    def cancel() -> None:
        assert answer.ticket is not None
        at.append(steps(engine))
        answer.ticket.cancel()
        answer.ticket.cancel()  # idempotent

    answer.after = {5: cancel, 6: lambda: ended.append(steps(engine))}
    holder = Answer(Generate(9, (3,), 1))
    # Submitted on the engine's thread, so that the ticket is there before the fifth item.
    holder.after[1] = lambda: setattr(answer, "ticket", engine.submit(answer.op, answer))
    engine.submit(holder.op, holder)
    assert last(answer) == Ending(0, FinishReason.CANCELLED)
    assert len(answer.tokens) == 5
    assert ended[0] - at[0] <= 2
    for neighbour in neighbours:
        neighbour.wait()
        assert len(neighbour.tokens) == 100


def test_a_waiting_stream_can_be_cancelled() -> None:
    with running(tiny_loaded("llama"), max_streams=1) as engine:
        runs = Answer(Generate(0, (3,), **LONG))
        waits = Answer(Generate(1, (3,), **LONG))

        def start_and_cancel() -> None:
            engine.submit(waits.op, waits).cancel()

        runs.after[2] = start_and_cancel
        engine.submit(runs.op, runs)
        assert waits.wait() == [Ending(1, FinishReason.CANCELLED)]
        assert last(runs).finish_reason is FinishReason.LENGTH  # type: ignore[union-attr]


def test_cancelling_a_stream_that_has_ended_is_nothing(engine: TorchEngine) -> None:
    answer = submit(engine, Generate(0, (3,), 2))
    items = list(answer.wait())
    assert answer.ticket is not None
    answer.ticket.cancel()
    submit(engine, Generate(1, (3,), 2)).wait()
    assert answer.items == items


def test_a_crash_fails_every_open_stream_with_its_reason_and_later_ones_too() -> None:
    network = tiny_network("llama")
    with running(tiny_loaded("llama", network), max_streams=2) as engine:
        streams = [Answer(Generate(n, (3, n), **LONG)) for n in range(4)]  # two of them wait

        def explode(*_: object) -> None:
            raise RuntimeError("the device is gone")

        streams[0].after[3] = lambda: network.register_forward_pre_hook(explode)
        for answer in streams:
            answer.ticket = engine.submit(answer.op, answer)
        for answer in streams:
            assert answer.error == "the engine failed: RuntimeError: the device is gone"
        assert len(streams[0].tokens) == 3
        assert engine.failure == streams[0].error
        assert submit(engine, Generate(9, (3,), 1)).error == engine.failure


def test_a_step_without_memory_ends_its_streams_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two run, a third waits; what was run before is still known to those that come after."""
    with running(tiny_loaded("llama"), max_streams=2) as engine:
        forward, prompt = engine._loop._model.forward, tuple(range(30, 60))

        def without_memory(plan: Plan) -> Any:
            monkeypatch.undo()
            forward(plan)
            raise torch.OutOfMemoryError("CUDA out of memory")

        streams = [Answer(Generate(n, (*prompt, n), **LONG)) for n in range(2)]
        streams.append(Answer(Generate(2, (*prompt, 2), 9)))

        def submit_others() -> None:
            for answer in streams[1:]:
                engine.submit(answer.op, answer)

        def arm() -> None:
            monkeypatch.setattr(engine._loop._model, "forward", without_memory)

        streams[0].after[1], streams[1].after[3] = submit_others, arm
        engine.submit(streams[0].op, streams[0])
        for answer in streams[:2]:
            assert answer.error == TOO_LARGE  # what the GPU says of other processes is for the log
            assert len(answer.tokens) >= 3
        judge = oracle("llama", engine)
        again = Generate(3, (*prompt, 0, *streams[0].tokens[:4]), 9)
        for answer in (streams[2], *answers(engine, [again])):
            judge.check(answer.op, answer.wait())
        assert engine.failure is None
        engine._loop._scheduler.check()


def test_close_fails_open_streams_and_is_idempotent() -> None:
    with running(tiny_loaded("llama")) as engine:
        started, closes = threading.Event(), threading.Event()
        answer = Answer(Generate(0, (3,), **LONG))
        answer.after[1] = lambda: started.set() or closes.wait(PATIENCE)
        engine.submit(answer.op, answer)
        assert started.wait(PATIENCE)
        closing = threading.Thread(target=engine.close)
        closing.start()
        while engine.failure is None:
            closing.join(0.001)
        closes.set()
        closing.join(PATIENCE)
        assert not closing.is_alive()
        engine.close()
        assert answer.error == "the engine was closed"
        assert submit(engine, Generate(1, (3,), 1)).error == "the engine was closed"


def test_the_engine_can_be_closed_from_a_sink() -> None:
    with running(tiny_loaded("llama")) as engine:
        answer = Answer(Generate(0, (3,), **LONG))
        answer.after[2] = engine.close
        engine.submit(answer.op, answer)
        assert answer.error == "the engine was closed"


def test_a_sink_that_raises_harms_nobody_else(engine: TorchEngine) -> None:
    def broken(_items: Sequence[StreamItem]) -> None:
        raise ValueError("a bug above")

    engine.submit(Generate(0, (3,), 10), broken)
    neighbour = submit(engine, Generate(1, (3,), 40, mask=NO_EOS))
    neighbour.wait()
    assert len(neighbour.tokens) == 40
    assert engine.failure is None


def test_a_sink_is_called_once_a_step_with_all_new_items(engine: TorchEngine) -> None:
    calls: list[tuple[int, int]] = []
    ended = threading.Event()

    def sink(items: Sequence[StreamItem]) -> None:
        calls.append((steps(engine), len(items)))
        if not isinstance(items[-1], TokenItem) or items[-1].finish_reason:
            ended.set()

    engine.submit(Score(0, (3,), (4,) * 100), sink)
    assert ended.wait(PATIENCE)
    assert [count for _, count in calls] == [100]
    assert len({step for step, _ in calls}) == len(calls)


def test_rope_that_depends_on_the_longest_stream_limits_the_context() -> None:
    with running(tiny_loaded("llama", stable_rope_length=40)) as engine:
        assert engine.info().context_length == 40
        assert isinstance(last(submit(engine, Generate(0, (3,) * 40, 1))), ErrorItem)


def test_the_card_tells_the_model_and_how_it_is_run(engine: TorchEngine) -> None:
    card = engine.info()
    assert (card.model, card.architecture, card.path) == ("tiny/llama", "llama", "packed")
    assert (card.vocab_size, card.eos_token_ids, card.bos_token_id) == (VOCABULARY, EOS, BOS)
    assert card.device == "cpu"
    assert card.details["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 4  # kv, layers, heads, dim, bytes


def test_the_fallback_frees_the_caches_of_streams_that_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = tiny_network("bloom")
    own = network.forward
    caches: list[weakref.ref[Any]] = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        if output.past_key_values is not None:
            caches.append(weakref.ref(output.past_key_values))
        return output

    with running(tiny_loaded("bloom", network)) as engine:
        monkeypatch.setattr(network, "forward", forward)
        answers(engine, [Generate(n, (3, n), 5, mask=NO_EOS) for n in range(4)])
        early = list(caches)
        submit(engine, Generate(9, (3,), 5, mask=NO_EOS)).wait()
        gc.collect()
        assert [cache() for cache in early] == [None] * len(early)


@pytest.mark.parametrize("settings", [{}, {"chunk_tokens": 1}, {"reuse_prefixes": False}])
def test_numbers_that_overflow_in_one_stream_never_reach_another(settings: dict[str, Any]) -> None:
    """Attention reads what it masks: what a stream leaves behind in memory must be finite."""
    network = tiny_network("llama")
    network.get_input_embeddings().weight[BROKEN] = float("nan")
    ops = [Generate(n, tuple(range(n, 7 * n + 3)), 30, mask=NO_EOS) for n in range(4)]
    with running(tiny_loaded("llama"), **settings) as engine:
        expected = [answer.tokens for answer in answers(engine, ops)]
    assert not any(BROKEN in tokens for tokens in expected)
    little = {**settings, "kv_cache_bytes": 512 * 1024}  # used again and again
    with running(tiny_loaded("llama", network), **little) as engine:
        for repetition in range(3):
            broken = [Generate(n, (BROKEN,) * (60 + repetition), 1) for n in range(6)]
            assert all("not finite" in answer.error for answer in answers(engine, broken))
            assert [answer.tokens for answer in answers(engine, ops)] == expected
