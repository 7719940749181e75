"""Ops to bytes (client) and back (server). See docs/protocol.md, "Framing"."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from lmtp_replicate.errors import ProtocolError
from lmtp_replicate.protocol.limits import LIMITS
from lmtp_replicate.protocol.mask_names import MaskNames
from lmtp_replicate.protocol.masks import Mask
from lmtp_replicate.protocol.messages import (
    Cancel,
    ErrorItem,
    Generate,
    ModelInfo,
    Op,
    Sampling,
    Score,
)
from lmtp_replicate.protocol.payloads import (
    brief,
    dump_json,
    dump_msgpack,
    load_json,
    load_msgpack,
)
from lmtp_replicate.protocol.validation import read_op

_OTHER_KEYS = 2**16
"""More than an op has beside its biases, with the colons in its strings."""
_STREAM_ID = re.compile(r'"stream_id"\s*:\s*(\d{1,15})\b')


def decode_frame(frame: str | bytes, masks: MaskNames | None = None) -> list[Op | ErrorItem]:
    """The ops of one websocket frame: text `KIND json` holds one, binary msgpack a list.

    `masks` is the connection's memory of named masks. What is wrong with one op becomes an
    `ErrorItem`; `ProtocolError` means that the frame as a whole could not be read; it may
    name a stream all the same.
    """
    if isinstance(frame, bytes):
        return _read_ops(load_msgpack(frame, "frame"), "frame", masks)
    kind, _, body = frame.partition(" ")
    _check_keys(body)
    return _read_ops([[kind, load_json(body, "frame")]], "frame", masks)


def decode_batch(ops_batch_json: str, masks: MaskNames | None = None) -> list[Op | ErrorItem]:
    """The ops of one Replicate input: a JSON list of `[kind, arguments]`. As `decode_frame`."""
    field = "ops_batch_json"
    return _read_ops(load_json(ops_batch_json, field), field, masks)


def encode_op(
    op: Op,
    *,
    model: str,
    binary: bool = False,
    extended: bool = False,
    masks: MaskNames | None = None,
) -> str | bytes:
    """One websocket frame. `extended` peers get masks as bitsets instead of `logit_bias`, and with
    `masks`, the connection's memory, by name once they know them."""
    kind, payload = _write_op(op, model, _mask_writer(extended, masks))
    return dump_msgpack([[kind, payload]]) if binary else f"{kind} {dump_json(payload)}"


def encode_batch(ops: Sequence[Op], *, model: str, extended: bool = False) -> str:
    """The value of `ops_batch_json`. For an `extended` peer, equal masks travel once."""
    writer = _mask_writer(extended, None)
    return dump_json([_write_op(op, model, writer) for op in ops])


def _check_keys(body: str) -> None:
    """Refuse a text op with far too many biases before it is read: that would take a second and,
    since the JSON parser lets no other thread run, hold up every connection and the engine.

    The first stream id in the text is the op's, unless the peer means to fool itself."""
    keys = body.count(":")
    if keys > LIMITS.bias_entries + _OTHER_KEYS:
        stream_id = _STREAM_ID.search(body)
        raise ProtocolError(
            f"the op has {keys} keys, but at most {LIMITS.bias_entries} biases are read",
            field="logit_bias",
            stream_id=int(stream_id[1]) if stream_id else None,
        )


def _read_ops(batch: object, field: str, masks: MaskNames | None) -> list[Op | ErrorItem]:
    if not isinstance(batch, list):
        raise ProtocolError(f"must be a list of ops, not {brief(batch)}", field=field)
    if len(batch) > LIMITS.ops_per_batch:
        raise ProtocolError(
            f"has {len(batch)} ops, but at most {LIMITS.ops_per_batch} are read", field=field
        )
    names = MaskNames() if masks is None else masks
    return [_read_entry(entry, f"{field}[{index}]", names) for index, entry in enumerate(batch)]


def _read_entry(entry: object, field: str, masks: MaskNames) -> Op | ErrorItem:
    try:
        if not isinstance(entry, list) or len(entry) != 2:
            raise ProtocolError(f"must be [command, arguments], not {brief(entry)}", field=field)
        return read_op(entry[0], entry[1], masks)
    except ProtocolError as error:
        return ErrorItem(error.stream_id, str(error))


MaskWriter = Callable[[Mask], tuple[str, dict[Any, Any]]]


def _mask_writer(extended: bool, masks: MaskNames | None) -> MaskWriter:
    if not extended:
        return lambda mask: ("logit_bias", mask.to_logit_bias())
    names = MaskNames() if masks is None else masks
    return lambda mask: ("mask", names.write(mask))


def _write_op(op: Op, model: str, write_mask: MaskWriter) -> tuple[str, dict[str, Any]]:
    payload: dict[str, Any] = {"stream_id": op.stream_id, "model": model}
    match op:
        case Generate():
            payload |= {"prompt": op.prompt, "max_tokens": op.max_tokens}
            payload |= {"temperature": op.sampling.temperature, "top_logprobs": op.top_logprobs}
            payload |= _not_neutral(op.sampling)
            if op.mask is not None:
                key, value = write_mask(op.mask)
                payload[key] = value
            return "GENERATE", payload
        case Score():
            return "SCORE", payload | {"prompt": op.prompt, "scored": op.scored}
        case ModelInfo():
            data: dict[str, Any] = {"model": model}
            if op.extensions:
                data["extensions"] = sorted(op.extensions)
            return "MODEL_INFO", payload | {"data": data}
        case Cancel():
            return "CANCEL", {"stream_id": op.stream_id}


def _not_neutral(sampling: Sampling) -> dict[str, Any]:
    """Only what differs from its default: upstream's server hands every key to transformers."""
    values = {part.name: getattr(sampling, part.name) for part in fields(Sampling)}
    neutral = {part.name: part.default for part in fields(Sampling)}
    return {name: value for name, value in values.items() if value != neutral[name]}
