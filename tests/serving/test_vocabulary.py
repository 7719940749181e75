"""Masks lose what the model cannot produce, and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lmtp_replicate.protocol.masks import Mask, members
from lmtp_replicate.serving.vocabulary import trim

BIASES = st.dictionaries(
    st.integers(0, 70), st.sampled_from([-100.0, -3.0, 2.5, 100.0]), min_size=1, max_size=30
)


@given(bias=BIASES, vocab_size=st.integers(1, 80))
def test_exactly_the_ids_outside_are_left_out(bias: dict[int, float], vocab_size: int) -> None:
    mask = Mask.from_logit_bias(bias)
    assert mask is not None
    trimmed = trim(mask, vocab_size)
    before, after = ids(mask), ids(trimmed.mask)
    assert after == [{token for token in part if token < vocab_size} for part in before]
    assert trimmed.ignored == sum(map(len, before)) - sum(map(len, after))
    # A whitelist stays one, however little of it is left.
    assert (trimmed.mask.allowed is None) == (mask.allowed is None)


def ids(mask: Mask) -> list[set[int]]:
    """The ids that are allowed, forbidden and biased."""
    sets = (members(mask.allowed or b""), members(mask.forbidden), dict(mask.added))
    return [set(part) for part in sets]
