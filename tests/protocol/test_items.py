"""The client reads what servers send, also those that are looser than ours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmtp_replicate.errors import ProtocolError
from lmtp_replicate.protocol.codecs import decode_items
from lmtp_replicate.protocol.messages import (
    Ending,
    ErrorItem,
    FinishReason,
    Info,
    Item,
    TokenItem,
    Usage,
)


def item_of(kind: str, **payload: Any) -> Item:
    """Both of upstream's dialects: an object, and a list of one."""
    one, same = (
        decode_items(f"{kind} {text}") for text in (json.dumps(payload), json.dumps([payload]))
    )
    assert one == same
    return one[0]


def token(**payload: Any) -> Item:
    return item_of("TOKEN", **{"stream_id": 1, "token": 5, "logprob": -0.5} | payload)


def test_tokens_with_little_or_much_around_them() -> None:
    assert token() == TokenItem(1, 5, -0.5)
    assert token(finish_reason=None, top_logprobs=None, seq=7) == TokenItem(1, 5, -0.5)
    assert token(top_logprobs={"5": -0.5, "7": -1}) == TokenItem(1, 5, -0.5, {5: -0.5, 7: -1})
    assert token(logprob=0) == TokenItem(1, 5, 0.0)


@pytest.mark.parametrize(
    ("sent", "read"),
    [("stop", "stop"), ("length", "length"), ("cancelled", "cancelled"), ("eos", "stop")],
)
def test_every_reason_ends_the_stream(sent: str, read: str) -> None:
    assert token(finish_reason=sent) == TokenItem(1, 5, -0.5, {}, FinishReason(read))
    ending = item_of("TOKEN", stream_id=1, finish_reason=sent)
    assert ending == Ending(1, FinishReason(read))


def test_masked_ids_of_a_server_with_soft_masks_are_no_candidates() -> None:
    (item,) = decode_items(
        'TOKEN {"stream_id": 1, "token": 5, "logprob": -0.5,'
        ' "top_logprobs": {"5": -0.5, "6": -Infinity}}'
    )
    assert item == TokenItem(1, 5, -0.5, {5: -0.5})


def test_errors_on_both_kinds_and_without_a_stream() -> None:
    for kind in ("TOKEN", "MSG"):
        assert item_of(kind, stream_id=3, error="no") == ErrorItem(3, "no")
        assert item_of(kind, error="no") == ErrorItem(None, "no")
        assert item_of(kind, stream_id=3, error={"a": 1}) == ErrorItem(3, "an object with 1 keys")
    assert token(error=None) == TokenItem(1, 5, -0.5)


def test_model_info_and_usage() -> None:
    assert item_of("MSG", stream_id=1, model_info={"a": 1}) == Info(1, {"a": 1})
    # Upstream's server while it loads.
    assert item_of("MSG", stream_id=1, model_info="<unavailable>") == Info(
        1, {"model": "<unavailable>"}
    )
    assert item_of("USAGE", usage={"ops": 1}) == Usage({"ops": 1})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("token", None),
        ("token", -1),
        ("token", 5.0),
        ("token", True),
        ("token", "5"),
        ("token", 10**9),
        ("logprob", None),
        ("logprob", "x"),
        ("logprob", float("nan")),
        ("logprob", float("-inf")),
        ("logprob", 10**400),
        ("top_logprobs", [1]),
        ("top_logprobs", {"a": -1.0}),
        ("top_logprobs", {"-1": -1.0}),
        ("top_logprobs", {"1": "x"}),
        ("top_logprobs", {"1": float("nan")}),
        ("top_logprobs", {str(10**9): -1.0}),
    ],
)
def test_a_broken_item_fails_its_own_stream(field: str, value: object) -> None:
    error = token(**{field: value})
    assert isinstance(error, ErrorItem)
    assert error.stream_id == 1
    assert error.error.startswith(field)


def test_the_neighbours_of_a_broken_item_are_kept() -> None:
    good = {"stream_id": 1, "token": 5, "logprob": -0.5}
    first, *broken, last = decode_items(
        "TOKEN " + json.dumps([good, 7, {"token": 5}, {"stream_id": "1"}, good])
    )
    assert first == last == TokenItem(1, 5, -0.5)
    assert all(isinstance(item, ErrorItem) and item.stream_id is None for item in broken)


@pytest.mark.parametrize(
    "frame", ["TOKEN", "TOKEN ", "TOKEN {", "MSG nonsense", "USAGE [", b"", b"\xc1", b"\x01"]
)
def test_garbage_is_a_typed_error(frame: str | bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_items(frame)
