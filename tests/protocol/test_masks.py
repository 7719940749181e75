"""Masks, and their names on the wire."""

from __future__ import annotations

import json
from base64 import b85encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_replicate.errors import ProtocolError
from lmtp_replicate.protocol.codecs import decode_batch, decode_frame, encode_batch, encode_op
from lmtp_replicate.protocol.limits import LIMITS
from lmtp_replicate.protocol.mask_names import MaskNames
from lmtp_replicate.protocol.masks import Mask, bitset, members
from lmtp_replicate.protocol.messages import ErrorItem, Generate
from tests.protocol import strategies


def half(vocabulary: int, start: int = 0) -> Mask:
    return Mask(forbidden=bitset(range(start, vocabulary, 2)))


def ask(stream_id: int, mask: Mask) -> Generate:
    return Generate(stream_id, (1,), 5, mask=mask)


@given(st.sets(st.integers(0, 3000)))
def test_bitsets_hold_what_is_put_in(ids: set[int]) -> None:
    bits = bitset(ids)
    assert list(members(bits)) == sorted(ids)
    assert not bits.endswith(b"\0")


@given(st.sets(st.integers(0, 400), min_size=50), st.integers(0, 5000))
def test_bitsets_of_many_ids_hold_what_is_put_in(ids: set[int], start: int) -> None:
    bits = bitset(start + token for token in ids)
    assert list(members(bits)) == sorted(start + token for token in ids)
    assert not bits.endswith(b"\0")


@given(st.dictionaries(strategies.ids, strategies.biases, max_size=60))
def test_a_mask_is_what_its_biases_say(biases: dict[int, float]) -> None:
    """Each id's verdict, one by one, as docs/protocol.md has it."""
    mask = Mask.from_logit_bias(biases) or Mask()
    whitelisted = {token for token, bias in biases.items() if bias >= 100}
    forbidden = {token for token, bias in biases.items() if bias <= -100}
    if whitelisted:
        assert mask == Mask(allowed=bitset(whitelisted))
        return
    assert mask.allowed is None
    assert set(members(mask.forbidden)) == forbidden
    assert dict(mask.added) == {
        token: bias for token, bias in biases.items() if -100 < bias < 100 and bias != 0
    }


@given(strategies.masks)
def test_a_mask_can_be_said_as_logit_bias(mask: Mask | None) -> None:
    if mask is not None:
        assert Mask.from_logit_bias(mask.to_logit_bias()) == mask


def test_what_logit_bias_cannot_say_is_refused() -> None:
    mask = Mask(allowed=bitset([3, 4]), added=((3, 2.0),))
    with pytest.raises(ProtocolError, match="logit_bias"):
        encode_op(ask(1, mask), model="m")
    assert decode_frame(encode_op(ask(1, mask), model="m", extended=True)) == [ask(1, mask)]


def test_forbidden_wins_over_allowed() -> None:
    mask, same = Mask(bitset([3, 4]), bitset([4])), Mask(allowed=bitset([3]))
    (op,) = decode_frame(encode_op(ask(1, mask), model="m", extended=True))
    assert op == ask(1, same)
    assert mask.to_logit_bias() == {3: 100, 4: -100}


def test_digests_tell_masks_apart() -> None:
    masks = [Mask(), Mask(allowed=b""), Mask(allowed=b"\1"), Mask(forbidden=b"\1")]
    masks += [Mask(added=((1, 2.0),)), Mask(allowed=b"\1", added=((1, 2.0),)), half(50)]
    assert len({mask.digest for mask in masks}) == len(masks)
    assert half(50).digest == half(50).digest


def test_all_spellings_mean_the_same() -> None:
    bits = bitset([3, 9])
    spellings = [{"allow": [3, 9]}, {"allow": [9, 3, 3]}, {"allow_bits": b85encode(bits).decode()}]
    spellings += [{"allow_bits": b85encode(bits + bytes(9)).decode()}]
    for spelling in spellings:
        payload = {"stream_id": 1, "prompt": [1], "max_tokens": 5, "mask": spelling}
        assert decode_frame(f"GENERATE {json.dumps(payload)}") == [ask(1, Mask(allowed=bits))]


def test_equal_masks_of_a_batch_travel_once() -> None:
    ops = [ask(number, half(128_000)) for number in range(8)]
    batch = encode_batch(ops, model="m", extended=True)
    assert len(batch) < 30_000
    assert decode_batch(batch) == ops


def test_a_connection_remembers_masks_from_op_to_op() -> None:
    ours, theirs = MaskNames(), MaskNames()
    first = encode_op(ask(1, half(128_000)), model="m", extended=True, masks=ours)
    second = encode_op(ask(2, half(128_000)), model="m", extended=True, masks=ours)
    assert len(second) < 300 < len(first)
    assert decode_frame(first, theirs) == [ask(1, half(128_000))]
    assert decode_frame(second, theirs) == [ask(2, half(128_000))]
    # Another connection has never heard of it, and says so on the stream.
    (error,) = decode_frame(second)
    assert isinstance(error, ErrorItem)
    assert error.stream_id == 2
    assert error.error.startswith("mask.ref: ")


def test_a_bias_of_its_own_needs_no_new_definition() -> None:
    ours, theirs = MaskNames(), MaskNames()
    plain = half(1000)
    biased = Mask(plain.allowed, plain.forbidden, ((1, 2.5),))
    frames = [
        encode_op(ask(1, mask), model="m", extended=True, masks=ours) for mask in (plain, biased)
    ]
    assert "ref" in str(frames[1])
    assert [decode_frame(frame, theirs) for frame in frames] == [[ask(1, plain)], [ask(1, biased)]]


def test_both_sides_forget_the_same_masks() -> None:
    ours, theirs = MaskNames(), MaskNames()
    distinct = [half(200 + 2 * size) for size in range(LIMITS.mask_names + 1)]
    for mask in [*distinct, *reversed(distinct), *distinct]:
        frame = encode_op(ask(1, mask), model="m", extended=True, masks=ours)
        assert decode_frame(frame, theirs) == [ask(1, mask)]
    known = [mask for mask in distinct if mask.digest in theirs]
    assert len(known) == LIMITS.mask_names
    assert [mask.digest in ours for mask in distinct] == [
        mask.digest in theirs for mask in distinct
    ]


def test_a_refused_op_still_defines_its_mask() -> None:
    names = MaskNames()
    frame = encode_op(ask(1, half(200)), model="m", extended=True, masks=names)
    broken = str(frame).replace('"max_tokens":5', '"max_tokens":0')
    theirs = MaskNames()
    assert isinstance(decode_frame(broken, theirs)[0], ErrorItem)
    again = encode_op(ask(2, half(200)), model="m", extended=True, masks=names)
    assert decode_frame(again, theirs) == [ask(2, half(200))]


@pytest.mark.parametrize(
    ("ids", "key"), [([120_000, 127_000], "allow"), (range(0, 128_000, 2), "allow_bits")]
)
def test_the_shorter_spelling_is_sent(ids: list[int], key: str) -> None:
    frame = str(encode_op(ask(1, Mask(allowed=bitset(ids))), model="m", extended=True))
    assert key in json.loads(frame.removeprefix("GENERATE "))["mask"]
