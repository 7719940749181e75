"""What a peer may send, and how it is told what is wrong."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest

from lmtp_replicate.errors import ProtocolError
from lmtp_replicate.protocol.codecs import decode_batch, decode_frame
from lmtp_replicate.protocol.limits import LIMITS
from lmtp_replicate.protocol.masks import Mask, bitset
from lmtp_replicate.protocol.messages import (
    Cancel,
    ErrorItem,
    Generate,
    ModelInfo,
    Op,
    Sampling,
    Score,
)

BEYOND = LIMITS.max_token_id + 1


def read(kind: str, **payload: Any) -> Op | ErrorItem:
    """The same op through both encodings, which must agree."""
    payload = {"stream_id": 1, "model": "m"} | payload
    (as_text,) = decode_frame(f"{kind} {json.dumps(payload)}")
    try:
        packed = msgpack.packb([[kind, payload]])
    except OverflowError:  # msgpack has no such integers
        return as_text
    (as_binary,) = decode_frame(packed)
    assert as_binary == as_text
    return as_text


def error_of(kind: str, **payload: Any) -> str:
    answer = read(kind, **payload)
    assert isinstance(answer, ErrorItem), answer
    assert answer.stream_id == 1
    return answer.error


def generate(**payload: Any) -> Generate:
    op = read("GENERATE", prompt=[1, 2], **payload)
    assert isinstance(op, Generate), op
    return op


def mask_of(**payload: Any) -> Mask | None:
    return generate(**payload).mask


def test_defaults_are_those_of_upstreams_server() -> None:
    assert generate() == Generate(1, (1, 2), 32, Sampling(), None, 1)


def test_null_is_the_same_as_absent() -> None:
    names = "max_tokens temperature logit_bias mask top_logprobs top_k top_p seed"
    names += " repetition_penalty presence_penalty frequency_penalty"
    nulls = dict.fromkeys(names.split())
    assert generate(**nulls) == generate()


def test_everything_at_once() -> None:
    op = generate(
        max_tokens=7,
        temperature=0.5,
        top_logprobs=3,
        top_k=4,
        top_p=0.9,
        seed=11,
        repetition_penalty=1.5,
        presence_penalty=1,
        frequency_penalty=-2,
        length_penalty=[],
        something_new={"a": 1},
    )
    assert op == Generate(1, (1, 2), 7, Sampling(0.5, 4, 0.9, 11, 1.5, 1.0, -2.0), None, 3)


def test_temperature_may_be_an_integer_and_next_to_nothing() -> None:
    assert generate(temperature=0) == generate(temperature=0.0)
    assert generate(temperature=1).sampling.temperature == 1
    assert generate(temperature=1e-30).sampling.temperature == 0


@pytest.mark.parametrize("kind", ["GENERATE", "SCORE"])
@pytest.mark.parametrize(
    ("prompt", "ids"), [([], ()), ([None], ()), ([None, 3], (3,)), ([0, 3], (0, 3))]
)
def test_prompts(kind: str, prompt: list[int | None], ids: tuple[int, ...]) -> None:
    op = read(kind, prompt=prompt, scored=[4])
    assert isinstance(op, Generate | Score)
    assert op.prompt == ids


def test_score_model_info_and_cancel() -> None:
    assert read("SCORE", prompt=[1], scored=[2, 3]) == Score(1, (1,), (2, 3))
    assert read("SCORE", prompt=[1], scored=[]) == Score(1, (1,), ())
    assert read("MODEL_INFO") == read("MODEL_INFO", data=None) == ModelInfo(1)
    assert read("MODEL_INFO", data={"model": "m"}) == ModelInfo(1)
    assert read("MODEL_INFO", data={"extensions": ["mask"]}) == ModelInfo(1, frozenset({"mask"}))
    assert read("CANCEL") == Cancel(1)


@pytest.mark.parametrize("stream_id", [0, 1, 2**53])
def test_stream_ids(stream_id: int) -> None:
    assert read("CANCEL", stream_id=stream_id) == Cancel(stream_id)


@pytest.mark.parametrize("stream_id", [-1, 2**53 + 1, 1.0, True, "1", None, [], {}, 10**400])
def test_without_a_readable_stream_id_the_error_names_no_stream(stream_id: object) -> None:
    answer = read("GENERATE", prompt=[1], stream_id=stream_id)
    assert isinstance(answer, ErrorItem)
    assert answer.stream_id is None
    assert answer.error.startswith("stream_id: ")


WRONG = [
    ("prompt", None),
    ("prompt", "text"),
    ("prompt", 5),
    ("prompt", {"0": 1}),
    ("prompt[0]", [True]),
    ("prompt[0]", [[1]]),
    ("prompt[1]", [1, -1]),
    ("prompt[1]", [1, 2.0]),
    ("prompt[1]", [1, None]),
    ("prompt[1]", [None, None]),
    ("prompt[2]", [None, 1, "2"]),
    ("prompt[2]", [0, 1, BEYOND]),
    ("prompt[0]", [10**400]),
    ("max_tokens", 0),
    ("max_tokens", -5),
    ("max_tokens", 1.0),
    ("max_tokens", True),
    ("max_tokens", "5"),
    ("max_tokens", 10**400),
    ("temperature", -0.1),
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("temperature", 1e9),
    ("temperature", 10**400),
    ("temperature", "0"),
    ("temperature", False),
    ("top_logprobs", -1),
    ("top_logprobs", LIMITS.top_logprobs + 1),
    ("top_logprobs", True),
    ("top_k", -1),
    ("top_k", 0.5),
    ("top_p", 0),
    ("top_p", 1.01),
    ("top_p", float("nan")),
    ("seed", -1),
    ("seed", 2**63),
    ("seed", 0.5),
    ("repetition_penalty", 0),
    ("repetition_penalty", float("inf")),
    ("presence_penalty", 101),
    ("frequency_penalty", "1"),
    ("frequency_penalty", float("nan")),
    ("logit_bias", []),
    ("logit_bias", 5),
    ("logit_bias", True),
    ("logit_bias", {"-1": 5}),
    ("logit_bias", {"a": 5}),
    ("logit_bias", {"": 5}),
    ("logit_bias", {" 1": 5}),
    ("logit_bias", {"1_0": 5}),
    ("logit_bias", {"\u0661": 5}),
    ("logit_bias", {"1.0": 5}),
    ("logit_bias['7']", {"3": 1, "7": None}),
    ("logit_bias['7']", {"7": float("nan")}),
    ("logit_bias['7']", {"7": float("-inf")}),
    ("logit_bias['7']", {"7": True}),
    ("logit_bias['7']", {"7": "100"}),
    ("logit_bias['7']", {"7": 10**400}),
    ("mask", 5),
    ("mask", {"allow": [1], "deny": [2]}),
    ("mask.allow", {"allow": "1"}),
    ("mask.allow[1]", {"allow": [1, -1]}),
    ("mask.deny[0]", {"deny": [1.5]}),
    ("mask.allow_bits", {"allow_bits": "\x7f"}),
    ("mask.deny_bits", {"deny_bits": 3}),
    ("mask.deny_bits", {"deny_bits": "0" * 10**6}),
    ("mask.add", {"add": [1]}),
    ("mask.add", {"add": {"-3": 1}}),
    ("mask.add['3']", {"add": {"3": float("inf")}}),
    ("mask.add[3]", {"add": {"3": 100}}),
    ("mask.add[3]", {"add": {"3": -1e300}}),
    ("mask.name", {"allow": [1], "name": ""}),
    ("mask.name", {"allow": [1], "name": 5}),
    ("mask.name", {"allow": [1], "name": "x" * 65}),
    ("mask.ref", {"ref": "unheard of"}),
    ("mask.ref", {"ref": ["x"]}),
]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=lambda value: ascii(value)[:30])
def test_a_wrong_field_is_named(field: str, value: object) -> None:
    name = field.partition("[")[0].partition(".")[0]
    error = error_of("GENERATE", **{"prompt": [1], name: value})
    assert error.startswith(f"{field}: "), error
    assert len(error) < 200


def test_wrong_fields_of_the_other_ops() -> None:
    assert error_of("SCORE", prompt=[1], scored=[2, -3]).startswith("scored[1]: ")
    assert error_of("SCORE", prompt=[1]).startswith("scored: ")
    assert error_of("SCORE", scored=[1]).startswith("prompt: ")
    assert error_of("SCORE", prompt=[1], scored=[None]).startswith("scored[0]: ")
    assert error_of("MODEL_INFO", data={"extensions": "all"}).startswith("data.extensions: ")
    assert "DANCE" in error_of("DANCE")


def test_a_mask_and_a_bias_together() -> None:
    assert error_of("GENERATE", prompt=[1], mask={"allow": [1]}, logit_bias={"1": 1}).startswith(
        "mask: "
    )
    assert mask_of(mask={"allow": [1]}, logit_bias={}) == Mask(allowed=bitset([1]))


def test_the_meaning_of_logit_bias() -> None:
    bias = {"3": 100, "4": 250.0, "5": -100, "6": -1e300, "7": 99.5, "8": 0, "2": -3}
    assert mask_of(logit_bias=bias) == Mask(allowed=bitset([3, 4]))
    del bias["3"], bias["4"]
    assert mask_of(logit_bias=bias) == Mask(None, bitset([5, 6]), ((2, -3), (7, 99.5)))
    for nothing in ({}, None, {"5": 0}, {str(BEYOND): 5}):
        assert mask_of(logit_bias=nothing) is None


def test_whitelists_of_unknown_ids_forbid_all_others() -> None:
    for unknown in (BEYOND, 2**61 - 1, 10**300):
        assert mask_of(logit_bias={str(unknown): 100}) == Mask(allowed=b"")
        assert mask_of(logit_bias={str(unknown): 100, "9" * 30: -100}) == Mask(allowed=b"")
        assert mask_of(logit_bias={"3": -100, str(unknown): -100}) == Mask(forbidden=bitset([3]))
    assert mask_of(mask={"allow": []}) == mask_of(mask={"allow": [BEYOND]}) == Mask(allowed=b"")


def test_biases_by_integer_ids_and_duplicates() -> None:
    packed = msgpack.packb(
        [["GENERATE", {"stream_id": 1, "prompt": [], "logit_bias": {3: 100, 5: 2}}]]
    )
    assert decode_frame(packed) == [Generate(1, (), 32, mask=Mask.from_logit_bias({3: 100, 5: 2}))]
    (op,) = decode_frame('GENERATE {"stream_id":1,"prompt":[],"logit_bias":{"3":-100,"3":100}}')
    assert op == Generate(1, (), 32, mask=Mask.from_logit_bias({3: 100}))


def test_one_broken_op_leaves_the_others_of_its_batch() -> None:
    good = ["GENERATE", {"stream_id": 1, "prompt": [1]}]
    batch = [good, ["GENERATE", {"stream_id": 2, "prompt": [-1]}], 7, ["SCORE"], ["SCORE", []]]
    batch += [[["GENERATE"], {"stream_id": 3}], good]
    first, *broken, last = decode_batch(json.dumps(batch))
    assert first == last == Generate(1, (1,), 32)
    assert all(isinstance(item, ErrorItem) for item in broken)
    assert [item.stream_id for item in broken] == [2, None, None, None, 3]
    assert decode_batch("[]") == []


@pytest.mark.parametrize(
    "batch", ["", "7", "null", "{}", '"x"', "[1", "[NaN", '[["GENERATE", {}]]x']
)
def test_a_batch_that_is_no_list_is_refused_as_a_whole(batch: str) -> None:
    with pytest.raises(ProtocolError, match="ops_batch_json") as caught:
        decode_batch(batch)
    assert caught.value.field == "ops_batch_json"


@pytest.mark.parametrize(
    "frame", ["", "GENERATE", "GENERATE ", "GENERATE {", "GENERATE {} {}", "{}", b"", b"\xc1", b"{"]
)
def test_an_unreadable_frame_is_refused_as_a_whole(frame: str | bytes) -> None:
    with pytest.raises(ProtocolError, match="frame"):
        decode_frame(frame)
