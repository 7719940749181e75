"""The traffic comparison: what it counts, and its tables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from benchmarks.machine import facts
from benchmarks.meter import longest_chain
from benchmarks.queries import QUERIES
from benchmarks.result import Measurement, Result
from benchmarks.rote.engine import best, choose, masked
from benchmarks.rote.model import LIKING, rote_model
from benchmarks.traffic_tables import SLOW, traffic_tables
from lmtp_replicate.protocol.masks import Mask, bitset
from lmtp_replicate.protocol.messages import Sampling

START = datetime(2026, 11, 25, tzinfo=UTC)


def measured(case: str, side: str, number: int, **figures: float) -> Measurement:
    counts = {"predictions": 4, "tokens": 10, "bytes": 1000, "waves": 2}
    return Measurement(case=case, side=side, round=number, figures=counts | figures)


def result(*measurements: Measurement) -> Result:
    return Result(
        comparison="traffic",
        started=START.isoformat(),
        machine=facts(),
        model={"name": "rote"},
        dtype="float32",
        settings={"rounds": 2},
        measurements=list(measurements),
    )


def test_a_wave_is_what_cannot_have_come_sooner() -> None:
    seconds = (0.0, 0.01, 0.2, 0.21, 0.3, 0.5)
    created = [START + timedelta(seconds=each) for each in seconds]
    assert longest_chain(created, 0.15) == 3
    assert longest_chain([], 0.15) == 0


def test_the_tables_sum_the_queries_by_round() -> None:
    both = result(
        *(measured("a", "upstream", number, wall_s=1.0 + number) for number in range(2)),
        *(measured("a", "ours", number, wall_s=0.5, predictions=1) for number in range(2)),
        *(measured("b", "upstream", number, wall_s=1.0) for number in range(2)),
        *(measured("b", "ours", number, wall_s=0.5) for number in range(2)),
        measured(f"a{SLOW}", "upstream", 0),
        measured(f"a{SLOW}", "ours", 0, wall_s=3.0),
    )
    fast, slow = traffic_tables(both)
    assert "| a | 4 → 1 | 2 → 2 | 10 → 10 | 1,000 → 1,000 | 1.50 (1.00 to 2.00) → 0.50" in fast
    assert "0.40 (0.33 to 0.50) |" in fast.splitlines()[-1]
    assert "| **all** | 8 → 5 |" in fast
    assert "| no answer → 3.00 (3.00 to 3.00) | - |" in slow


def test_the_model_continues_what_it_knows_wherever_the_text_was_cut() -> None:
    model = rote_model()
    ids = {piece: token for token, piece in enumerate(model.pieces)}
    for text, following in (("The sky", " is"), ("It is the last day of June, so today is 3", "0")):
        context = [ids[letter] for letter in text]  # letter by letter, as no tokenizer would
        assert model.pieces[int(model.logits(context).argmax())] == following
    known = [ids[letter] for letter in "It was great The guest was happy"]
    assert int(model.logits(known).argmax()) == model.eos


def test_the_model_hears_every_token_of_its_context() -> None:
    model = rote_model()
    first, second = (model.logprobs([token, 20, 30]) for token in (40, 41))
    assert not np.array_equal(first, second)
    assert np.exp(first).sum() == pytest.approx(1)
    assert first.max() < np.log(np.exp(LIKING) / 100)  # nothing known: nothing is certain


def test_masks_and_draws() -> None:
    logits = np.array([1.0, 3.0, 2.0])
    row = masked(logits, Mask(allowed=bitset([0, 2])))
    assert list(best(row, 3)) == [2, 0]
    assert np.isneginf(masked(logits, Mask(forbidden=bitset([1])))[1])
    drawn = [choose(row, Sampling(temperature=1.0), str(seed)) for seed in range(200)]
    assert set(drawn) == {0, 2} and drawn.count(2) > drawn.count(0)


def test_the_queries_have_names_of_their_own() -> None:
    assert len({query.name for query in QUERIES}) == len(QUERIES)
