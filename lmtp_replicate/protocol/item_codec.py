"""Items to bytes (server) and back (client). See docs/protocol.md, "Framing"."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from math import inf, isfinite
from typing import Any

from lmtp_replicate.errors import ProtocolError
from lmtp_replicate.protocol.limits import LIMITS
from lmtp_replicate.protocol.messages import (
    Dialect,
    Ending,
    ErrorItem,
    FinishReason,
    Info,
    Item,
    TokenItem,
    Usage,
)
from lmtp_replicate.protocol.payloads import (
    brief,
    dump_json,
    dump_msgpack,
    load_json,
    load_msgpack,
)
from lmtp_replicate.protocol.token_ids import UNKNOWN_ID, are_finite, read_biases
from lmtp_replicate.protocol.validation import read_stream_id

_log = logging.getLogger(__name__)


def encode_frame(items: Sequence[Item], *, binary: bool = False) -> list[str | bytes]:
    """Websocket frames for `items`, in order: one text frame per run of a kind, or one binary."""
    groups = [(kind, list(map(_write_item, run))) for kind, run in groupby(items, _kind)]
    if binary:
        return [dump_msgpack(groups)] if groups else []
    return [f"{kind} {dump_json(run)}" for kind, run in groups]


def encode_lines(items: Sequence[Item], dialect: Dialect) -> str:
    """ASCII lines for Replicate, each ended by a newline: one object per line for `UPSTREAM`, a
    list of all neighbours of a kind for `EXTENDED`."""
    if dialect is Dialect.EXTENDED:
        return "".join(f"{frame!s}\n" for frame in encode_frame(items))
    return "".join(f"{_kind(item)} {dump_json(_write_item(item))}\n" for item in items)


def decode_items(frame: str | bytes) -> list[Item]:
    """The items of one websocket frame or one line, in either dialect.

    Unknown kinds are ignored with one warning. What is wrong with one item becomes an `ErrorItem`;
    `ProtocolError` means that the frame as a whole could not be read.
    """
    if isinstance(frame, bytes):
        groups = load_msgpack(frame, "frame")
        if not isinstance(groups, list):
            raise ProtocolError(f"must be a list, not {brief(groups)}", field="frame")
        return [item for group in groups for item in _read_group(group)]
    kind, _, body = frame.strip("\r\n").partition(" ")
    if kind not in READERS:
        _warn_unknown(kind)
        return []
    return _read_run(kind, load_json(body, kind))


def _kind(item: Item) -> str:
    match item:
        case Info():
            return "MSG"
        case Usage():
            return "USAGE"
        case _:
            return "TOKEN"


def _write_item(item: Item) -> Mapping[str, Any]:
    match item:
        case TokenItem():
            if not (isfinite(item.logprob) and all(map(isfinite, item.top_logprobs.values()))):
                return _write_error(item.stream_id, "the model's log probabilities are not finite")
            return {
                "stream_id": item.stream_id,
                "token": item.token,
                "logprob": item.logprob,
                "finish_reason": item.finish_reason,
                "top_logprobs": dict(item.top_logprobs),
            }
        case Ending():
            return {"stream_id": item.stream_id, "finish_reason": item.finish_reason}
        case ErrorItem():
            return _write_error(item.stream_id, item.error)
        case Info():
            return {"stream_id": item.stream_id, "model_info": item.model_info}
        case Usage():
            return {"usage": item.usage}


def _write_error(stream_id: int | None, error: str) -> dict[str, Any]:
    # Foreign reasons may quote half a character; a frame that cannot be sent would help nobody.
    return {"stream_id": stream_id, "error": error.encode("utf-8", "replace").decode("utf-8")}


def _read_group(group: object) -> list[Item]:
    if not isinstance(group, list) or len(group) != 2 or not isinstance(group[0], str):
        return [ErrorItem(None, f"frame: must be [kind, items], not {brief(group)}")]
    kind, run = group
    if kind not in READERS:
        _warn_unknown(kind)
        return []
    return _read_run(kind, run)


def _read_run(kind: str, run: object) -> list[Item]:
    return [_read_item(kind, payload) for payload in (run if isinstance(run, list) else [run])]


def _read_item(kind: str, payload: object) -> Item:
    if not isinstance(payload, dict):
        return ErrorItem(None, f"{kind}: must be an object, not {brief(payload)}")
    stream_id: int | None = None
    try:
        if payload.get("error") is not None:
            return _read_error(payload)
        if kind != "USAGE":
            stream_id = read_stream_id(payload)
        return READERS[kind](payload)
    except ProtocolError as error:
        return ErrorItem(stream_id, str(error))


def _read_error(payload: Mapping[str, Any]) -> ErrorItem:
    error = payload["error"]
    reason = error if isinstance(error, str) else brief(error)
    stream_id = None if payload.get("stream_id") is None else read_stream_id(payload)
    return ErrorItem(stream_id, reason)


def _read_token(payload: Mapping[str, Any]) -> TokenItem | Ending:
    reason = _read_finish_reason(payload.get("finish_reason"))
    if payload.get("token") is None and reason is not None:
        return Ending(payload["stream_id"], reason)
    token: Any = payload.get("token")
    logprob: Any = payload.get("logprob")
    if type(token) is not int or not 0 <= token <= LIMITS.max_token_id:
        raise ProtocolError(f"{brief(token)} is not a token id", field="token")
    if not are_finite([logprob]):
        raise ProtocolError(f"{brief(logprob)} is not a finite number", field="logprob")
    best = _read_top_logprobs(payload.get("top_logprobs"))
    return TokenItem(payload["stream_id"], token, float(logprob), best, reason)


def _read_finish_reason(reason: object) -> FinishReason | None:
    if reason is None:
        return None
    if isinstance(reason, str) and reason in FinishReason.__members__.values():
        return FinishReason(reason)
    return FinishReason.STOP  # whatever a newer server calls it: the stream has ended


def _read_top_logprobs(value: object) -> dict[int, float]:
    if value is None:
        return {}
    # Servers without hard masks send -Infinity for what a mask left out: it is no candidate.
    if isinstance(value, dict) and -inf in value.values():
        value = {token: logprob for token, logprob in value.items() if logprob != -inf}
    best = read_biases(value, "top_logprobs")
    if UNKNOWN_ID in best:
        raise ProtocolError(
            f"has an id beyond the largest token id, {LIMITS.max_token_id}", field="top_logprobs"
        )
    return best


def _read_info(payload: Mapping[str, Any]) -> Info:
    info = payload.get("model_info")
    # Upstream's server says "<unavailable>" while it loads.
    return Info(payload["stream_id"], info if isinstance(info, dict) else {"model": info})


def _read_usage(payload: Mapping[str, Any]) -> Usage:
    usage = payload.get("usage")
    if not isinstance(usage, dict):
        raise ProtocolError(f"must be an object, not {brief(usage)}", field="usage")
    return Usage(usage)


READERS: Mapping[str, Callable[[Mapping[str, Any]], Item]] = {
    "TOKEN": _read_token,
    "MSG": _read_info,
    "USAGE": _read_usage,
}

_warned: set[str] = set()
_MOST_WARNINGS = 16


def _warn_unknown(kind: str) -> None:
    if kind not in _warned and len(_warned) < _MOST_WARNINGS:
        _warned.add(kind)
        _log.warning("ignored a message of unknown kind %s: is the peer newer?", brief(kind))
