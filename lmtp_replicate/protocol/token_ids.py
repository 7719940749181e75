"""Token ids and biases as they come from a peer.

Prompts of 10^6 ids and biases on half of a 128k vocabulary are ordinary traffic, so whole columns
are checked at once, and the culprit is looked for only when there is one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import isfinite
from typing import Any

from lmtp_replicate.errors import ProtocolError
from lmtp_replicate.protocol.limits import LIMITS
from lmtp_replicate.protocol.masks import ALLOW_AT
from lmtp_replicate.protocol.payloads import brief

UNKNOWN_ID = LIMITS.max_token_id + 1
"""Stands for all ids that are too large to be in any vocabulary."""


def read_ids(value: object, field: str, *, most: int, known: bool = True) -> tuple[int, ...]:
    """A list of at most `most` ids >= 0, with `known` none beyond `LIMITS.max_token_id`.

    Raises `ProtocolError` on `field` or on one of its entries (`prompt[3]`).
    """
    if not isinstance(value, list):
        raise ProtocolError(f"must be a list of token ids, not {brief(value)}", field=field)
    if len(value) > most:
        raise ProtocolError(f"has {len(value)} ids, but at most {most} are read", field=field)
    if not _are_ids(value) or (known and value and max(value) > LIMITS.max_token_id):
        index, reason = next(
            (index, reason)
            for index, token in enumerate(value)
            if (reason := _what_is_wrong(token, known))
        )
        raise ProtocolError(reason, field=f"{field}[{index}]")
    return tuple(value)


def read_prompt(value: object) -> tuple[int, ...]:
    """The field `prompt`. LMQL sends null in the place of a BOS that its tokenizer lacks."""
    if isinstance(value, list) and value and value[0] is None:
        # Read with a harmless id in its place, so that errors still count from the first entry.
        value = [0, *value[1:]]
        return read_ids(value, "prompt", most=LIMITS.prompt_tokens)[1:]
    return read_ids(value, "prompt", most=LIMITS.prompt_tokens)


def read_biases(value: object, field: str) -> dict[int, float]:
    """An object of finite numbers by token id (integers, or strings of digits).

    Ids beyond `LIMITS.max_token_id` become the one entry `UNKNOWN_ID`, whitelisted when any of
    them is: kept apart, they could be chosen to collide in a dict. Raises `ProtocolError`.
    """
    if not isinstance(value, dict):
        raise ProtocolError(f"must be an object, not {brief(value)}", field=field)
    if len(value) > LIMITS.bias_entries:
        raise ProtocolError(
            f"has {len(value)} entries, but at most {LIMITS.bias_entries} are read", field=field
        )
    ids, biases = _read_keys(value, field), value.values()
    if not are_finite(biases):
        key, wrong = next(pair for pair in value.items() if not are_finite([pair[1]]))
        raise ProtocolError(
            f"{brief(wrong)} is not a finite number", field=f"{field}[{brief(key)}]"
        )
    if not ids or max(ids) <= LIMITS.max_token_id:
        return dict(value) if ids is value else dict(zip(ids, biases, strict=True))
    known, unknown = {}, 0.0
    for token, bias in zip(ids, biases, strict=True):
        if token <= LIMITS.max_token_id:
            known[token] = bias
        elif bias >= ALLOW_AT:
            unknown = ALLOW_AT
    return known | {UNKNOWN_ID: unknown}


def _read_keys(value: dict[Any, Any], field: str) -> Collection[int]:
    """The ids; `value` itself where it has them as integers."""
    kinds = set(map(type, value))
    # int() alone would also take " 1", "+1", "1_0" and digits of other scripts.
    if kinds == {str} and (joined := "".join(value)).isascii() and joined.isdigit() and all(value):
        try:
            return list(map(int, value))
        except ValueError:  # thousands of digits
            pass
    if kinds == {int} and min(value) >= 0:
        return value
    ids = []
    for key in value:
        digits = isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 20
        token = int(key) if digits else key
        if reason := _what_is_wrong(token, False):
            raise ProtocolError(f"key {reason}", field=field)
        ids.append(token)
    return ids


def _are_ids(values: list[Any]) -> bool:
    return not values or (set(map(type, values)) == {int} and min(values) >= 0)


def _what_is_wrong(token: object, known: bool) -> str | None:
    if type(token) is not int:  # bool is an int to isinstance
        return f"{brief(token)} is not a token id"
    if token < 0:
        return f"{brief(token)} is negative"
    if known and token > LIMITS.max_token_id:
        return f"{brief(token)} is beyond the largest token id, {LIMITS.max_token_id}"
    return None


def are_finite(values: Iterable[Any]) -> bool:
    """Whether all are int or float (not bool) and none is NaN, infinite, or beyond every float."""
    try:
        return set(map(type, values)) <= {int, float} and all(map(isfinite, values))
    except OverflowError:
        return False
