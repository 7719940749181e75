"""Best ids and normalisers in C: torch's, whatever stands in a row."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmtp_replicate.engine.compiled_choice import (
    CompiledChoice,
    best_and_normaliser,
    choice_for,
)
from lmtp_replicate.engine.kernels import kernels
from lmtp_replicate.engine.sampling import BrokenLogits, Choice, Draw, NothingLeft, Sampler
from lmtp_replicate.protocol.messages import Sampling

pytestmark = pytest.mark.usefixtures("has_compiler")

CPU = torch.device("cpu")
special = st.sampled_from([-math.inf, 0.0, 1.0, 80.0, -90.0, -1e30, 3e38])


def choice() -> CompiledChoice:
    compiled, _ = kernels(torch.float32)
    assert compiled is not None
    return CompiledChoice(compiled)


def agree(logits: Tensor) -> None:
    best, logprobs, logs = choice()(logits).unbind(1)
    right, _, expected = best_and_normaliser(logits).unbind(1)
    assert torch.equal(best, right)
    torch.testing.assert_close(logs, expected, rtol=1e-6, atol=2e-6)
    highest = logits.gather(1, best.long()[:, None])[:, 0].double()
    torch.testing.assert_close(logprobs, highest - logs, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=300, deadline=None)
@given(st.lists(special | st.floats(-100, 100, width=32), min_size=1, max_size=200))
def test_one_row(numbers: list[float]) -> None:
    agree(torch.tensor([numbers]))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 40),
    count=st.integers(1, 70) | st.sampled_from([511, 512, 513, 32000]),
    more=st.integers(0, 3),
    threads=st.sampled_from([1, 2]),
    size=st.sampled_from([0.0, 1e-3, 1.0, 30.0]),
)
def test_rows_apart(rows: int, count: int, more: int, threads: int, size: float) -> None:
    """Size 0: all are equal."""
    random = torch.Generator().manual_seed(rows + count)
    logits = (torch.randn(rows, count + more, generator=random) * size)[:, :count]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        agree(logits)
    finally:
        torch.set_num_threads(before)


def test_columns_need_not_lie_side_by_side() -> None:
    agree(torch.randn(70, 5).t())


@pytest.mark.parametrize("others", [math.nan, -math.inf])
def test_a_row_of_no_numbers_is_broken(others: float) -> None:
    """As all logits are where one number has overflowed, and what a mask leaves of them."""
    logits = torch.full((1, 40), others)
    logits[0, 21] = math.nan
    draw = Draw(Sampling(temperature=0.0), None, 1, [], 0, 0)
    (outcome,) = Sampler(40, choice()).step(logits, [draw])
    assert isinstance(outcome, BrokenLogits)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 15, 16, 99])
def test_rows_without_a_distribution_fail_alone(broken: float, place: int) -> None:
    logits = torch.zeros(3, 100)
    logits[0] = -math.inf
    logits[1, place] = broken
    draw = Draw(Sampling(temperature=0.0), None, 1, [], 0, 0)
    nothing, wrong, right = Sampler(100, choice()).step(logits, [draw] * 3)
    assert isinstance(nothing, NothingLeft)
    assert isinstance(wrong, BrokenLogits)
    assert isinstance(right, Choice)
    assert right.token == 0
    assert right.logprob == right.top_logprobs[0] == pytest.approx(-math.log(100))


def test_it_is_chosen_where_it_is_compiled() -> None:
    assert isinstance(choice_for(CPU, torch.float32), CompiledChoice)
    assert isinstance(choice_for(CPU, torch.bfloat16), CompiledChoice)
    assert choice_for(CPU, torch.float16) is best_and_normaliser
    assert choice_for(torch.device("cuda"), torch.float32) is best_and_normaliser


def test_what_does_not_agree_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, _ = kernels(torch.float32)
    assert compiled is not None
    right = compiled.choice

    def of_the_first_half(logits: int, rows: int, count: int, *others: int) -> None:
        right(logits, rows, count // 2, *others)

    monkeypatch.setattr(compiled, "choice", of_the_first_half)
    assert choice_for(CPU, torch.float32) is best_and_normaliser
