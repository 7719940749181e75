"""What ops share, against a plain comparison with every earlier op."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_replicate.client import sharing
from lmtp_replicate.client.sharing import Shared, SharedPrefixes

tokens = st.lists(st.integers(0, 2), max_size=6)


def common(a: Sequence[int], b: Sequence[int]) -> int:
    for position, (one, other) in enumerate(zip(a, b, strict=False)):
        if one != other:
            return position
    return min(len(a), len(b))


@given(st.lists(st.tuples(tokens, tokens), max_size=8))
def test_an_op_shares_its_longest_beginning_with_the_first_that_has_it(
    ops: list[tuple[list[int], list[int]]],
) -> None:
    prefixes = SharedPrefixes()
    earlier: list[tuple[int, list[int]]] = []  # tokens given, whole sequence
    for number, (prompt, output) in enumerate(ops, 1):
        lengths = [common(prompt, sequence) for _, sequence in earlier]
        longest = max(lengths, default=0)
        found = prefixes.begin(number, prompt)
        if longest == 0:
            assert found is None
        else:
            owner = lengths.index(longest) + 1
            assert found == Shared(owner, longest, max(0, longest - earlier[owner - 1][0]))
        for token in output:
            prefixes.extend(number, token)
        prefixes.end(number)
        earlier.append((len(prompt), prompt + output))


def test_what_is_known_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "MOST_PLACES", 100)
    prefixes = SharedPrefixes()
    assert prefixes.begin(1, range(101)) is None
    assert prefixes.begin(2, [0, 1]) is None  # all was forgotten
    prefixes.extend(1, 5)  # and this op's beginning too
    assert prefixes.begin(3, [0, 1, 7]) == Shared(2, 2, 0)
    repeated = [prefixes.begin(number, [0, 1, 7]) for number in range(4, 204)]
    assert repeated.count(None) > 1  # nothing new, and still not remembered for ever
