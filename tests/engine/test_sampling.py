"""Choosing and scoring tokens, against a slow independent reference."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from lmtp_replicate.engine.drawing import draw, uniform
from lmtp_replicate.engine.sampling import BrokenLogits, Choice, Draw, NothingLeft, Sampler, Scored
from lmtp_replicate.protocol.masks import Mask
from lmtp_replicate.protocol.messages import Sampling
from tests.engine.sampling_reference import acceptable_tokens, logprobs, processed

WIDTH, VOCAB = 13, 11  # two padded rows in the head

# Quarters and powers of two: exact in float32, so that ties are ties for the reference too.
logit = st.integers(-40, 40).map(lambda n: n / 4)
token_id = st.integers(0, WIDTH + 3)
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1e-300, 1e-3, 0.7, 1.0, 3.0, 1e300]),
    top_k=st.integers(0, WIDTH + 1),
    top_p=st.sampled_from([1e-9, 0.1, 0.5, 0.9, 1.0]),
    repetition_penalty=st.sampled_from([0.5, 1.0, 2.0]),
    presence_penalty=st.sampled_from([-0.5, 0.0, 0.25]),
    frequency_penalty=st.sampled_from([-0.25, 0.0, 0.5]),
)
biases = st.dictionaries(
    token_id, st.one_of(logit, st.sampled_from([-100.0, -1000.0, 100.0])), max_size=8
)
draws = st.builds(
    Draw,
    sampling=samplings,
    mask=biases.map(Mask.from_logit_bias),
    top_logprobs=st.integers(0, WIDTH + 2),
    history=st.lists(token_id, max_size=12),
    position=st.integers(0, 10**6),
    entropy=st.integers(0, 2**63),
)
scores = st.builds(Scored, token=st.integers(0, VOCAB - 1))
logit_rows = st.lists(logit, min_size=WIDTH, max_size=WIDTH)
batches = st.lists(st.tuples(logit_rows, st.one_of(draws, scores)), min_size=1, max_size=6)


def plain(temperature: float = 0.0, **given_: Any) -> Draw:
    defaults: dict[str, Any] = {
        "sampling": Sampling(temperature=temperature),
        "mask": None,
        "top_logprobs": 1,
        "history": (),
        "position": 0,
        "entropy": 0,
    }
    return Draw(**(defaults | given_))


def bias(**ids: float) -> Mask:
    mask = Mask.from_logit_bias({int(name[1:]): value for name, value in ids.items()})
    assert mask is not None
    return mask


@settings(max_examples=400, deadline=None)
@given(batches)
def test_every_row_is_what_the_reference_says(batch: list[tuple[list[float], Any]]) -> None:
    outcomes = Sampler(VOCAB).step(
        torch.tensor([logits for logits, _ in batch]), [r for _, r in batch]
    )
    for (logits, row), outcome in zip(batch, outcomes, strict=True):
        if isinstance(row, Scored):
            assert outcome == pytest.approx(
                logprobs(dict(enumerate(logits[:VOCAB])))[row.token], abs=1e-5
            )
            continue
        values = processed(logits, row, VOCAB)
        if not values:
            assert isinstance(outcome, NothingLeft)
            continue
        assert isinstance(outcome, Choice)
        expected = logprobs(values)
        assert outcome.token in acceptable_tokens(values, row)
        assert outcome.logprob == pytest.approx(expected[outcome.token], abs=1e-5)
        assert list(outcome.top_logprobs) == list(expected)[: row.top_logprobs]
        for token, logprob in outcome.top_logprobs.items():
            assert logprob == pytest.approx(expected[token], abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(batches, st.randoms(use_true_random=False))
def test_a_row_does_not_depend_on_its_mates(
    batch: list[tuple[list[float], Any]], random: Any
) -> None:
    sampler = Sampler(VOCAB)
    together = sampler.step(torch.tensor([logits for logits, _ in batch]), [r for _, r in batch])
    order = random.sample(range(len(batch)), len(batch))
    for index in order:
        logits, row = batch[index]
        assert sampler.step(torch.tensor([logits]), [row]) == [together[index]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_dtype_is_computed_in_float32_or_better(dtype: torch.dtype) -> None:
    logits = torch.linspace(-3, 3, 5, dtype=dtype).unsqueeze(0)
    (outcome,) = Sampler(5).step(logits, [Scored(1)])
    assert outcome == pytest.approx(logits.double().log_softmax(1)[0, 1].item(), abs=1e-6)


def test_ties_go_to_the_lowest_id_everywhere() -> None:
    logits = torch.tensor([[1.0, 2.0, -0.0, 2.0, 0.0, 2.0]])
    (outcome,) = Sampler(6).step(logits, [plain(top_logprobs=5)])
    assert isinstance(outcome, Choice)
    assert outcome.token == 1
    assert list(outcome.top_logprobs) == [1, 3, 5, 0, 2]


def test_a_tie_at_the_border_of_top_k_keeps_the_lowest_ids() -> None:
    rows = [plain(sampling=Sampling(temperature=1, top_k=2), position=p) for p in range(200)]
    outcomes = Sampler(4).step(torch.zeros(200, 4), rows)
    assert {o.token for o in outcomes if isinstance(o, Choice)} == {0, 1}


def test_masked_ids_are_absent_and_fewer_than_asked_may_remain() -> None:
    (outcome,) = Sampler(4).step(
        torch.zeros(1, 4), [plain(mask=bias(_1=100, _3=100), top_logprobs=4)]
    )
    assert outcome == Choice(
        1,
        pytest.approx(-math.log(2)),
        {1: pytest.approx(-math.log(2)), 3: pytest.approx(-math.log(2))},
    )


def test_a_hard_mask_beats_any_difference_of_logits() -> None:
    """A bias of 100 would lose against 1e4."""
    logits = torch.tensor([[0.0, 1e4, -1e4]])
    (outcome,) = Sampler(3).step(logits, [plain(mask=bias(_2=100), top_logprobs=3)])
    assert outcome == Choice(2, 0.0, {2: 0.0})


def test_padded_rows_of_the_head_do_not_exist() -> None:
    logits = torch.tensor([[0.0, 0.0, 50.0]])
    drawn, scored = Sampler(2).step(logits.repeat(2, 1), [plain(top_logprobs=3), Scored(0)])
    half = pytest.approx(-math.log(2))
    assert drawn == Choice(0, half, {0: half, 1: half})
    assert scored == half


def test_a_whitelist_outside_the_vocabulary_fails_that_row_only() -> None:
    rows = [plain(), plain(mask=bias(_7=100)), plain(temperature=1.0)]
    first, second, third = Sampler(3).step(torch.zeros(3, 5), rows)
    assert isinstance(first, Choice)
    assert isinstance(second, NothingLeft)
    assert isinstance(third, Choice)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_fail_their_rows_only(bad: float) -> None:
    logits = torch.zeros(6, 3)
    logits[::2, 1] = bad
    hot = plain(sampling=Sampling(temperature=1, top_k=2, top_p=0.5), top_logprobs=3)
    outcomes = Sampler(3).step(logits, [plain(), plain(), hot, hot, Scored(0), Scored(0)])
    assert [isinstance(o, BrokenLogits) for o in outcomes] == [True, False] * 3


def test_a_scored_id_outside_the_vocabulary_fails_that_row_only() -> None:
    outcomes = Sampler(3).step(torch.zeros(3, 5), [Scored(3), Scored(2), Scored(-1)])
    assert [isinstance(o, NothingLeft) for o in outcomes] == [True, False, True]


@pytest.mark.parametrize("temperature", [5e-324, 1e-38, 1e38, 1.7e308])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    logits = torch.tensor([[-80.0, 3.0, 90.0, 89.9]]).repeat(50, 1)
    rows = [plain(temperature, position=p, top_logprobs=2) for p in range(50)]
    outcomes = Sampler(4).step(logits, rows)
    tokens = {o.token for o in outcomes if isinstance(o, Choice) and math.isfinite(o.logprob)}
    assert tokens == ({2} if temperature < 1 else {0, 1, 2, 3})


def test_penalties_that_overflow_stay_finite() -> None:
    sampling = Sampling(repetition_penalty=1e38, frequency_penalty=1e38)
    rows = [plain(sampling=sampling, history=[0, 0, 1], top_logprobs=3)]
    (outcome,) = Sampler(3).step(torch.tensor([[-5.0, 5.0, 0.0]]), rows)
    assert isinstance(outcome, Choice)
    assert list(outcome.top_logprobs) == [2, 0, 1]  # both at the floor
    assert all(math.isfinite(value) for value in outcome.top_logprobs.values())


def test_draws_follow_the_distribution() -> None:
    count, logits = 4000, torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    sampling = Sampling(temperature=1.5, top_k=4, top_p=0.95)
    rows = [plain(sampling=sampling, position=p, entropy=11) for p in range(count)]
    outcomes = Sampler(5).step(logits.repeat(count, 1), rows)
    seen = Counter(o.token for o in outcomes if isinstance(o, Choice))
    weights = (logits[[0, 1, 2, 4]].double() / 1.5).exp()
    for token, share in zip([0, 1, 2, 4], (weights / weights.sum()).tolist(), strict=True):
        assert abs(seen[token] / count - share) < 4 * math.sqrt(share * (1 - share) / count)
    assert seen[3] == 0


@pytest.mark.parametrize("spread", [0.5, 4.0])  # nearly flat: the whole vocabulary is sorted
def test_top_p_of_a_large_vocabulary(spread: float) -> None:
    logits = torch.randn(40, 9000, generator=torch.Generator().manual_seed(2)) * spread
    samplings_ = [Sampling(temperature=1, top_p=0.9, top_k=k) for k in (0, 0, 5000, 20)]
    rows = [plain(sampling=samplings_[p % 4], position=p, entropy=4) for p in range(40)]
    outcomes = Sampler(9000).step(logits, rows)
    for values, row, outcome in zip(logits.tolist(), rows, outcomes, strict=True):
        assert isinstance(outcome, Choice)
        assert outcome.token in acceptable_tokens(processed(values, row, 9000), row)


def test_entropy_and_position_alone_decide_the_draw() -> None:
    logits = torch.zeros(1, 1000)
    sampler = Sampler(1000)
    first = sampler.step(logits, [plain(1.0, entropy=5, position=9)])
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    again = sampler.step(logits, [plain(1.0, entropy=5, position=9)])
    others = [
        sampler.step(logits, [plain(1.0, entropy=e, position=p)]) for e, p in [(5, 10), (6, 9)]
    ]
    torch.random.set_rng_state(state)
    assert again == first
    assert first not in others


def test_seeded_numbers_are_the_same_in_every_release() -> None:
    """A stored seed must give the stored text after an upgrade too."""
    assert [uniform(0, 0), uniform(42, 7), uniform(2**70, 1)] == [
        0.7454947482680012,
        0.8031542822215769,
        0.9509266881132774,
    ]


@pytest.mark.parametrize(("number", "token"), [(0.0, 1), (1 - 2**-48, 3)])
def test_the_ends_of_the_unit_interval_draw_possible_ids(number: float, token: int) -> None:
    weights = torch.tensor([[-math.inf, 0.0, -math.inf, 1.0, -math.inf]])
    assert draw(weights, [Sampling(temperature=1)], [number]).tolist() == [token]


def test_numbers_are_uniform_and_below_one() -> None:
    numbers = [uniform(3, position) for position in range(10_000)]
    assert 0 <= min(numbers) < 0.001 < 0.999 < max(numbers) < 1
    assert sum(numbers) / len(numbers) == pytest.approx(0.5, abs=0.015)
    assert len(set(numbers)) == len(numbers)


def test_neutral_values_equal_absent_ones() -> None:
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    for position in range(50):
        neutral = Sampling(temperature=1, top_k=300, top_p=1.0)
        rows = [plain(1.0, position=position), plain(sampling=neutral, position=position)]
        absent, present = Sampler(300).step(logits, rows)
        assert absent == present


def test_logits_are_left_as_they_are() -> None:
    logits = torch.zeros(2, 4)
    sampling = Sampling(temperature=1, top_k=2, repetition_penalty=2, presence_penalty=1)
    Sampler(4).step(logits, [plain(sampling=sampling, history=[1], mask=bias(_0=-100, _1=3))] * 2)
    assert torch.equal(logits, torch.zeros(2, 4))


def test_a_step_without_rows_is_nothing() -> None:
    assert Sampler(4).step(torch.zeros(0, 4), []) == []


class _Waits(TorchDispatchMode):
    """Operations whose result's size or value the host must wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in {
            "_local_scalar_dense",
            "nonzero",
            "masked_select",
            "unique",
        }:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device_before_the_one_transfer() -> None:
    sampling = Sampling(temperature=1, top_k=2, top_p=0.5, repetition_penalty=2)
    rows = [
        plain(),
        plain(sampling=sampling, history=[1, 2], mask=bias(_0=-100, _1=3), top_logprobs=3),
    ]
    with _Waits() as waits:
        Sampler(5).step(torch.zeros(3, 7), [*rows, Scored(1)])
    assert waits.seen == []
