"""Bytes to plain objects and back: JSON and msgpack, bounded in size and depth.

The numbers NaN and Infinity are let through here and refused by whoever reads the field, so that
the error can name the field and reach its own stream. On output they are a `ValueError`.
"""

from __future__ import annotations

import json
from typing import Any

import msgpack

from lmtp_replicate.errors import ProtocolError
from lmtp_replicate.protocol.limits import LIMITS

dump_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
"""ASCII only: some readers of Replicate's streams split lines at U+2028 and its like."""


def dump_msgpack(value: object) -> bytes:
    """`value` as msgpack."""
    packed: bytes = msgpack.packb(value)
    return packed


def load_json(text: str, field: str) -> Any:
    """The value of a JSON text. Raises `ProtocolError` on `field`."""
    _check_size(text, field)
    _check_containers(text.count("[") + text.count("{"), field)
    try:
        value = json.loads(text)
    except RecursionError:
        raise _too_deep(field) from None
    except ValueError as error:  # broken syntax, or an integer of thousands of digits
        raise ProtocolError(f"not valid JSON: {error}", field=field) from None
    return _shallow(value, field)


def load_msgpack(data: bytes, field: str) -> Any:
    """The value of one msgpack object. Raises `ProtocolError` on `field`."""
    _check_size(data, field)
    seen = 0

    def count(container: Any) -> Any:
        nonlocal seen
        seen += 1
        _check_containers(seen, field)
        return container

    try:
        value = msgpack.unpackb(data, strict_map_key=False, list_hook=count, object_hook=count)
    except (msgpack.StackError, RecursionError):
        raise _too_deep(field) from None
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ProtocolError(f"not valid msgpack: {error}", field=field) from None
    return _shallow(value, field)


def brief(value: object) -> str:
    """`value` for an error message: short, ASCII, and cheap whatever the peer sent."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return f"an object with {len(value)} keys"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:36]} ..."


def _check_size(message: str | bytes, field: str) -> None:
    if len(message) > LIMITS.message_bytes:
        raise ProtocolError(
            f"{len(message)} bytes, but at most {LIMITS.message_bytes} are read", field=field
        )


def _check_containers(count: int, field: str) -> None:
    # A list of empty lists takes 30 times its bytes of memory, and seconds.
    if count > LIMITS.containers:
        raise ProtocolError(
            f"more than the {LIMITS.containers} lists and objects that are read", field=field
        )


def _shallow(value: Any, field: str) -> Any:
    level = [value]
    for _ in range(LIMITS.nesting):
        level = [child for item in level for child in _containers(item)]
        if not level:
            return value
    raise _too_deep(field)


def _containers(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return []
    return [child for child in value if type(child) is list or type(child) is dict]


def _too_deep(field: str) -> ProtocolError:
    return ProtocolError(f"nested deeper than {LIMITS.nesting} levels", field=field)
