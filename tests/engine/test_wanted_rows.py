"""Which tokens of a step the last layer has to serve."""

from __future__ import annotations

import ctypes

import torch
from hypothesis import given
from hypothesis import strategies as st

from lmtp_replicate.engine.wanted_rows import WantedRows


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """Of each work: tokens, how many are wanted, the stream's place, the first token's position."""
    number, place = st.integers(0, 30), st.integers(0, 1000)
    works = draw(st.lists(st.tuples(st.integers(1, 20), number, place, number), min_size=1))
    return [(tokens, min(wanted, tokens), *rest) for tokens, wanted, *rest in works]


@given(steps(), st.randoms(use_true_random=False))
def test_they_are_the_works_last_tokens(
    step: list[tuple[int, int, int, int]], shuffle: object
) -> None:
    works, expected, rows, start = [], [], [], 0
    for tokens, wanted, place, position in step:
        works.append((start, tokens, place, position))
        if wanted:
            expected.append((len(rows), wanted, place, position + tokens - wanted))
        rows += range(start + tokens - wanted, start + tokens)
        start += tokens
    ordered = list(rows)
    shuffle.shuffle(rows)  # type: ignore[attr-defined]
    found = WantedRows(torch.tensor(rows, dtype=torch.int64), torch.tensor(works))
    arguments = found.arguments
    assert (arguments.count, arguments.works_count) == (len(rows), len(expected))
    assert read(arguments.tokens, len(rows)) == ordered
    assert read(arguments.works, 4 * len(expected)) == [n for work in expected for n in work]


def read(address: int | None, count: int) -> list[int]:
    """So many int64 numbers."""
    return [*(ctypes.c_int64 * count).from_address(address)] if address and count else []
