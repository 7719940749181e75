"""Biases that are said again: the same masks, the same errors, bounded memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_replicate.errors import ProtocolError
from lmtp_replicate.protocol import recent_biases
from lmtp_replicate.protocol.masks import Mask
from lmtp_replicate.protocol.recent_biases import RecentBiases

LONG = 100

biases = st.builds(
    lambda start, value, other: {start + n: value for n in range(LONG)} | {3: other},
    st.integers(0, 2),
    st.sampled_from([-100.0, 100.0, 1.5]),
    st.sampled_from([-100.0, 0.5, 100.0]),
)


@given(st.lists(biases, max_size=30))
def test_masks_are_those_of_the_biases(said: list[dict[int, float]]) -> None:
    recent = RecentBiases()
    for bias in said:
        assert recent.mask_of(bias) == Mask.from_logit_bias(bias)


def test_what_is_said_again_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    recent = RecentBiases()
    first = recent.mask_of(dict.fromkeys(range(LONG), -100.0))

    def fail(*args: Any) -> None:
        pytest.fail("it was read again")

    monkeypatch.setattr(recent_biases, "read_biases", fail)
    assert recent.mask_of(dict.fromkeys(range(LONG), -100)) is first


@pytest.mark.parametrize("wrong", ["-100", float("nan"), None, [1], 10**400, True])
def test_what_is_wrong_is_so_after_its_like_too(wrong: object) -> None:
    recent = RecentBiases()
    good: dict[Any, Any] = dict.fromkeys(range(LONG), -100.0)
    recent.mask_of(good)
    recent.mask_of({**good, 7: 1.0})
    for _ in range(2):  # and is not remembered
        with pytest.raises(ProtocolError, match=r"logit_bias\[7\]"):
            recent.mask_of({**good, 7: wrong})


@pytest.mark.parametrize("wrong", [True, 1.0])
def test_what_equals_an_id_is_none(wrong: object) -> None:
    recent = RecentBiases()
    recent.mask_of(dict.fromkeys(range(LONG), -100.0))
    ids: list[Any] = [0, wrong, *range(2, LONG)]
    with pytest.raises(ProtocolError):
        recent.mask_of(dict.fromkeys(ids, -100.0))


def test_an_id_that_is_said_twice_has_its_last_bias() -> None:
    others = {str(n): -100.0 for n in range(10, 10 + LONG)}
    recent = RecentBiases()
    for first, second, added in (("1", "01", 3.0), ("01", "1", 2.0)):
        mask = recent.mask_of({first: {"1": 2.0, "01": 3.0}[first], second: added, **others})
        assert mask is not None
        assert mask.added == ((1, added),)


def test_ids_filled_up_with_zeros_are_not_kept() -> None:
    recent = RecentBiases()
    recent.mask_of({str(n).zfill(4000): -100.0 for n in range(LONG)})
    assert recent._known == ()


def test_only_so_much_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_biases, "_MOST_ENTRIES", 10 * LONG)
    recent = RecentBiases()
    for start in range(50):
        recent.mask_of({start + n: -100.0 for n in range((1 + start % 5) * LONG)})
        recent.mask_of(dict.fromkeys(range(11 * LONG), -100.0))  # too long itself
        assert 0 < len(recent._known) <= 8
        assert sum(len(known.bias) for known in recent._known) <= 10 * LONG
