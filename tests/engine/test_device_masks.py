"""The bounded store of masks on the device."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtp_replicate.engine.device_masks import DeviceMasks
from lmtp_replicate.protocol.masks import Mask, members

CPU = torch.device("cpu")
ids = st.integers(0, 80)
masks = st.dictionaries(ids, st.sampled_from([-100.0, -2.0, 1.5, 100.0])).map(Mask.from_logit_bias)


@settings(max_examples=200, deadline=None)
@given(masks, st.integers(1, 70))
def test_a_mask_on_the_device_is_the_mask(mask: Mask | None, vocab_size: int) -> None:
    logits = torch.arange(vocab_size).float().unsqueeze(0)
    expected = logits[0].tolist()
    if mask is not None:
        for token, bias in mask.added:
            if token < vocab_size:
                expected[token] += bias
        allowed = range(vocab_size) if mask.allowed is None else list(members(mask.allowed))
        forbidden = list(members(mask.forbidden))
        expected = [
            value if token in allowed and token not in forbidden else -math.inf
            for token, value in enumerate(expected)
        ]
    assert DeviceMasks(vocab_size).apply(logits, [mask])[0].tolist() == expected


def some_mask(token: int) -> Mask:
    mask = Mask.from_logit_bias({token: 100.0})
    assert mask is not None
    return mask


def test_a_known_mask_is_not_expanded_again_and_the_least_used_goes() -> None:
    store = DeviceMasks(8, capacity=2)
    first = store.get(some_mask(0), CPU)
    second = store.get(some_mask(1), CPU)
    assert store.get(some_mask(0), CPU) is first
    store.get(some_mask(2), CPU)
    assert len(store) == 2
    assert store.get(some_mask(0), CPU) is first
    assert store.get(some_mask(1), CPU) is not second


def test_one_step_may_use_more_masks_than_are_kept() -> None:
    store = DeviceMasks(4, capacity=1)
    masked = store.apply(torch.zeros(3, 4), [some_mask(token) for token in range(3)])
    assert masked.argmax(dim=1).tolist() == [0, 1, 2]
