"""Whatever arrives, a decoder answers with messages or a `ProtocolError`: no crash, no hang."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lmtp_replicate.errors import ProtocolError
from lmtp_replicate.protocol import op_codec
from lmtp_replicate.protocol.codecs import (
    LineDecoder,
    decode_batch,
    decode_frame,
    decode_items,
    encode_frame,
    encode_op,
)
from lmtp_replicate.protocol.limits import LIMITS
from lmtp_replicate.protocol.messages import (
    Cancel,
    Ending,
    ErrorItem,
    Generate,
    Info,
    ModelInfo,
    Score,
    TokenItem,
    Usage,
)
from tests.protocol import strategies

OPS = (Generate, Score, ModelInfo, Cancel, ErrorItem)
ITEMS = (TokenItem, Ending, ErrorItem, Info, Usage)
MILLION = 10**6

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=8)
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)
SCALARS = "stream_id max_tokens temperature top_logprobs top_k top_p seed repetition_penalty"
OTHERS = "prompt scored logit_bias mask allow deny allow_bits deny_bits add ref name data"
ITEM = "token logprob finish_reason error model_info usage presence_penalty extensions"
FIELDS = f"{SCALARS} {OTHERS} {ITEM}".split()
payloads = st.dictionaries(
    st.sampled_from(FIELDS),
    anything | st.dictionaries(st.sampled_from(FIELDS) | st.text("0123456789-"), anything),
    max_size=8,
)
kinds = st.sampled_from(["GENERATE", "SCORE", "MODEL_INFO", "CANCEL", "TOKEN", "MSG", "USAGE"])


def read(decode: Callable[[Any], list[Any]], frame: str | bytes, allowed: tuple[type, ...]) -> None:
    """Decode; what comes out must be sendable, since servers answer with it."""
    try:
        answers = decode(frame)
    except ProtocolError as error:
        assert len(str(error)) < 300
        return
    assert all(isinstance(answer, allowed) for answer in answers)
    errors = [answer for answer in answers if isinstance(answer, ErrorItem)]
    encode_frame(errors)
    encode_frame(errors, binary=True)


@given(st.binary(max_size=60) | st.lists(st.integers(0, 255), max_size=30).map(bytes))
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\x91\x92\xa8GENERATE\xdf\xff\xff\xff\xff")
@example(b"\x91\x92\xa8GENERATE\x81\x91\x01\x01")
@example(b"\x91\x92\xa8GENERATE\x81\xa9stream_id\xd7\xff\x00\x00\x00\x00\x00\x00\x00\x01")
@example(b"\xff" * 20)
def test_random_bytes(data: bytes) -> None:
    read(decode_frame, data, OPS)
    read(decode_items, data, ITEMS)


@given(st.text(max_size=60))
@example("GENERATE \ud800")
@example("TOKEN " + "9" * 5000)
def test_random_text(text: str) -> None:
    for kind in ("", "GENERATE ", "TOKEN "):
        read(decode_frame, kind + text, OPS)
        read(decode_items, kind + text, ITEMS)
    read(decode_batch, text, OPS)
    LineDecoder().feed(text + "\n")


@given(kinds, payloads)
def test_wrong_types_everywhere(kind: str, payload: dict[str, Any]) -> None:
    text = json.dumps(payload)
    read(decode_frame, f"{kind} {text}", OPS)
    read(decode_batch, json.dumps([[kind, payload]]), OPS)
    read(decode_items, f"{kind} {text}", ITEMS)
    read(decode_items, f"{kind} [{text},{text}]", ITEMS)
    try:
        packed = msgpack.packb([[kind, payload]])
    except (OverflowError, ValueError):  # integers and characters that msgpack cannot hold
        return
    read(decode_frame, packed, OPS)
    read(decode_items, packed, ITEMS)


@given(strategies.ops, st.data())
def test_truncated_and_damaged_frames(op: Any, data: st.DataObject) -> None:
    for binary in (False, True):
        frame = encode_op(op, model="m", binary=binary, extended=True)
        cut = data.draw(st.integers(0, len(frame) - 1))
        read(decode_frame, frame[:cut], OPS)
        if isinstance(frame, bytes):
            damaged = frame[:cut] + data.draw(st.binary(min_size=1, max_size=2)) + frame[cut + 1 :]
            read(decode_frame, damaged, OPS)


def test_every_truncation_of_a_binary_frame_is_refused() -> None:
    frame = encode_op(Generate(1, (1, 2, 300, 70_000), 5), model="m", binary=True)
    assert isinstance(frame, bytes)
    for cut in range(len(frame)):
        with pytest.raises(ProtocolError, match="frame"):
            decode_frame(frame[:cut])


@pytest.mark.parametrize("depth", [LIMITS.nesting + 1, 900, 5_000, MILLION])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_deep_json(depth: int, opening: str, closing: str) -> None:
    deep = opening * depth + "1" + closing * depth
    for decode, text in (
        (decode_frame, f'GENERATE {{"stream_id": 1, "prompt": {deep}}}'),
        (decode_frame, "GENERATE " + opening * depth),
        (decode_batch, deep),
        (decode_items, f"TOKEN {deep}"),
    ):
        with pytest.raises(ProtocolError):
            decode(text)
    (error,) = LineDecoder().feed(f"TOKEN {deep}\n")
    assert isinstance(error, ErrorItem)


def test_deep_json_on_a_deep_python_stack() -> None:
    deep = 'GENERATE {"stream_id": 1, "prompt": ' + "[" * 900 + "]" * 900 + "}"

    def descend(levels: int) -> None:
        if levels:
            descend(levels - 1)
        else:
            with pytest.raises(ProtocolError):
                decode_frame(deep)

    descend(sys.getrecursionlimit() // 2)


@pytest.mark.parametrize("depth", [LIMITS.nesting + 1, 1_000, 5_000, MILLION])
@pytest.mark.parametrize("opening", [b"\x91", b"\x81\x01", b"\x81\xa1a"])
def test_deep_msgpack(depth: int, opening: bytes) -> None:
    for decode in (decode_frame, decode_items):
        with pytest.raises(ProtocolError, match=r"nested|lists and objects"):
            decode(opening * depth + b"\x01")


def test_the_exact_depth() -> None:
    deep: Any = 1
    for _ in range(LIMITS.nesting - 1):  # the op itself is the first level
        deep = [deep]
    (op,) = decode_frame(op_of(deep=deep))
    assert isinstance(op, Generate)
    with pytest.raises(ProtocolError, match="nested"):
        decode_frame(op_of(deep=[deep]))


def op_of(**payload: Any) -> str:
    return "GENERATE " + json.dumps({"stream_id": 1, "prompt": [1]} | payload)


@pytest.mark.timeout(30)
def test_a_million_biases_are_refused() -> None:
    bias = {str(token): -100 for token in range(MILLION)}
    (error,) = decode_frame(msgpack.packb([["GENERATE", {"stream_id": 1, "logit_bias": bias}]]))
    assert isinstance(error, ErrorItem)
    assert (error.stream_id, error.error.partition(":")[0]) == (1, "logit_bias")
    (error,) = decode_frame(op_of(mask={"allow": list(range(MILLION))}))
    assert isinstance(error, ErrorItem)
    assert (error.stream_id, error.error.partition(":")[0]) == (1, "mask.allow")


def test_far_too_many_biases_are_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading them takes a second in which no other thread of the server runs."""
    monkeypatch.setattr(op_codec, "load_json", lambda *_: pytest.fail("it was read"))
    many = '"1": 1, ' * MILLION
    for start, stream_id in (('{"stream_id": 1, "logit_bias": {', 1), ('{"logit_bias": {', None)):
        with pytest.raises(ProtocolError, match="logit_bias") as refused:
            decode_frame(f"GENERATE {start}{many}")
        assert refused.value.stream_id == stream_id


@pytest.mark.timeout(30)
def test_a_million_prompt_tokens_are_ordinary() -> None:
    prompt = [random.Random(0).randrange(128_000)] * MILLION
    (op,) = decode_frame(op_of(prompt=prompt))
    assert isinstance(op, Generate)
    assert len(op.prompt) == MILLION
    (error,) = decode_frame(op_of(prompt=[*prompt, -1]))
    assert error == ErrorItem(1, "prompt[1000000]: -1 is negative")
    (error,) = decode_frame(op_of(prompt=[1] * (LIMITS.prompt_tokens + 1)))
    assert isinstance(error, ErrorItem)
    assert error.error.startswith("prompt: has 1048577 ids")


@pytest.mark.timeout(30)
def test_bias_ids_that_collide_in_a_hash_table_cost_nothing() -> None:
    """Python hashes integers modulo 2^61 - 1: kept apart, these would take hours."""
    bias = {str(number * (2**61 - 1)): 100 for number in range(1, 400_000)}
    (op,) = decode_frame(op_of(logit_bias=bias))
    assert isinstance(op, Generate)
    assert op.mask is not None
    assert op.mask.allowed == b""
    (error,) = decode_items(
        f"TOKEN {json.dumps({'stream_id': 1, 'token': 1, 'logprob': -1, 'top_logprobs': bias})}"
    )
    assert isinstance(error, ErrorItem)


@pytest.mark.timeout(30)
def test_millions_of_empty_lists_are_refused() -> None:
    count = 5 * MILLION
    with pytest.raises(ProtocolError, match="lists and objects"):
        decode_frame("GENERATE [" + "[]," * count + "[]]")
    for empty in (b"\x90", b"\x80"):
        with pytest.raises(ProtocolError, match="lists and objects"):
            decode_frame(b"\xdd" + count.to_bytes(4, "big") + empty * count)


def test_long_messages_are_refused_unread() -> None:
    long = LIMITS.message_bytes + 1
    for decode in (decode_frame, decode_items):
        with pytest.raises(ProtocolError, match="bytes"):
            decode("TOKEN " + " " * long)
        with pytest.raises(ProtocolError, match="bytes"):
            decode(bytes(long))
    with pytest.raises(ProtocolError, match="ops_batch_json"):
        decode_batch(" " * long)


def test_too_many_ops_are_refused() -> None:
    batch = [["CANCEL", {"stream_id": 1}]] * LIMITS.ops_per_batch
    assert len(decode_batch(json.dumps(batch))) == len(batch)
    for decode, encode in ((decode_batch, json.dumps), (decode_frame, msgpack.packb)):
        with pytest.raises(ProtocolError, match="1025 ops"):
            decode(encode([*batch, batch[0]]))


def test_error_texts_stay_short() -> None:
    long = "x" * MILLION
    for payload in ({"temperature": long}, {"logit_bias": {long: 1}}, {"mask": {"ref": long}}):
        (error,) = decode_frame(op_of(**payload))
        assert isinstance(error, ErrorItem)
        assert len(error.error) < 200
