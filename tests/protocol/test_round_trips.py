"""What one side says, the other side reads, in every dialect and encoding."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_replicate.protocol.codecs import (
    LineDecoder,
    decode_batch,
    decode_frame,
    decode_items,
    encode_batch,
    encode_frame,
    encode_lines,
    encode_op,
)
from lmtp_replicate.protocol.mask_names import MaskNames
from lmtp_replicate.protocol.messages import Dialect, ErrorItem, Generate, Item, Op, TokenItem
from tests.protocol import strategies


@given(st.lists(strategies.ops, max_size=5), st.booleans(), st.booleans())
def test_ops_over_a_websocket(ops: list[Op], binary: bool, extended: bool) -> None:
    ours, theirs = MaskNames(), MaskNames()
    for op in ops:
        frame = encode_op(op, model="m", binary=binary, extended=extended, masks=ours)
        assert decode_frame(frame, theirs) == [op]


@given(st.lists(strategies.ops, max_size=5), st.booleans())
def test_ops_over_replicate(ops: list[Op], extended: bool) -> None:
    assert decode_batch(encode_batch(ops, model="m", extended=extended)) == ops


@given(st.lists(strategies.items, max_size=6), st.booleans())
def test_items_over_a_websocket(items: list[Item], binary: bool) -> None:
    frames = encode_frame(items, binary=binary)
    assert [item for frame in frames for item in decode_items(frame)] == items


@given(st.lists(strategies.items, max_size=6), st.sampled_from(Dialect), st.data())
def test_items_over_replicate_whatever_the_chunks(
    items: list[Item], dialect: Dialect, data: st.DataObject
) -> None:
    text = encode_lines(items, dialect)
    assert text.isascii()
    decoder, read = LineDecoder(), []
    while text:
        size = data.draw(st.integers(1, len(text)))
        read += decoder.feed(text[:size])
        text = text[size:]
    assert read + decoder.finish() == items


def test_one_frame_per_run_of_a_kind() -> None:
    tokens: list[Item] = [TokenItem(1, 5, -0.5, {5: -0.5}), ErrorItem(2, "no")]
    (frame,) = encode_frame(tokens)
    assert frame == (
        'TOKEN [{"stream_id":1,"token":5,"logprob":-0.5,"finish_reason":null,'
        '"top_logprobs":{"5":-0.5}},{"stream_id":2,"error":"no"}]'
    )
    assert encode_frame([]) == encode_frame([], binary=True) == []


def test_upstream_lines_hold_one_object_each() -> None:
    items: list[Item] = [TokenItem(1, 5, -0.5), TokenItem(1, 6, -0.5)]
    lines = encode_lines(items, Dialect.UPSTREAM).split("\n")
    assert [json.loads(line.removeprefix("TOKEN "))["token"] for line in lines[:-1]] == [5, 6]
    assert lines[-1] == ""
    assert encode_lines(items, Dialect.EXTENDED).count("\n") == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("binary", [False, True])
def test_a_model_that_yields_nan_fails_its_own_stream(value: float, binary: bool) -> None:
    items: list[Item] = [
        TokenItem(1, 5, value),
        TokenItem(2, 5, -1.0, {5: value}),
        TokenItem(3, 5, -1.0),
    ]
    read = [item for frame in encode_frame(items, binary=binary) for item in decode_items(frame)]
    assert [type(item) for item in read] == [ErrorItem, ErrorItem, TokenItem]
    assert [item.stream_id for item in read if isinstance(item, ErrorItem)] == [1, 2]


def test_an_error_text_that_is_no_valid_unicode_can_be_sent() -> None:
    items: list[Item] = [ErrorItem(1, "cannot open '\udcff'")]
    for frame in encode_frame(items) + encode_frame(items, binary=True):
        assert decode_items(frame) == [ErrorItem(1, "cannot open '?'")]


def test_ops_for_upstream_name_only_what_is_asked_for() -> None:
    """Upstream's server hands every key to transformers, which refuses those it does not know."""
    frame = encode_op(Generate(3, (1, 2), 5), model="m")
    assert isinstance(frame, str)
    assert json.loads(frame.removeprefix("GENERATE ")) == {
        "stream_id": 3,
        "model": "m",
        "prompt": [1, 2],
        "max_tokens": 5,
        "temperature": 0.0,
        "top_logprobs": 1,
    }
