"""The `mask` extension: an op's mask as id lists or bitsets, defined once and named later.

One `MaskNames` per connection or prediction on either side; both sides forget in the same order,
so a client always knows which names its server still has.
"""

from __future__ import annotations

from base64 import b85decode, b85encode
from dataclasses import replace
from typing import Any

from lmtp_replicate.errors import ProtocolError
from lmtp_replicate.protocol.limits import LIMITS
from lmtp_replicate.protocol.masks import ALLOW_AT, FORBID_AT, Mask, bitset, members
from lmtp_replicate.protocol.payloads import brief
from lmtp_replicate.protocol.recent_biases import RecentBiases
from lmtp_replicate.protocol.token_ids import UNKNOWN_ID, read_biases, read_ids

NAME_LENGTH = 64
ID_LENGTH = 7
"""Characters of an id in a JSON list, about."""
WORTH_A_NAME = 16
"""Ids, or characters of base85, from which on a name is shorter than saying it again."""
SETS = ("allow", "deny", "allow_bits", "deny_bits", "ref")


class MaskNames:
    """The newest `LIMITS.mask_names` named id sets; an older one is forgotten. `biases`: the masks
    that the peer has said as a `logit_bias`."""

    def __init__(self) -> None:
        self._sets: dict[str, Mask] = {}
        self.biases = RecentBiases()

    def __contains__(self, name: str) -> bool:
        return name in self._sets

    def define(self, name: str, mask: Mask) -> None:
        """Remember the id sets of `mask`; a name defined again becomes the newest."""
        self._sets.pop(name, None)
        self._sets[name] = replace(mask, added=())
        if len(self._sets) > LIMITS.mask_names:
            del self._sets[next(iter(self._sets))]

    def read(self, payload: object) -> Mask | None:
        """The mask of an op's `mask` value; defines its name, if it has one."""
        if not isinstance(payload, dict):
            raise ProtocolError(f"must be an object, not {brief(payload)}", field="mask")
        given = [key for key in SETS if payload.get(key) is not None]
        if len(given) > 1:
            raise ProtocolError(f"only one of {', '.join(SETS)} is possible", field="mask")
        mask = self._read_set(given[0], payload[given[0]]) if given else Mask()
        if payload.get("name") is not None:
            self.define(_read_name(payload["name"], "mask.name"), mask)
        if payload.get("add") is not None:
            mask = replace(mask, added=_read_added(payload["add"]))
        return None if mask == Mask() else mask

    def write(self, mask: Mask) -> dict[str, Any]:
        """The `mask` value that stands for `mask`, as short as it gets: the name of its sets where
        the peer knows it, else their definition, which then is known."""
        sets = replace(mask, added=())
        payload: dict[str, Any] = {"ref": sets.digest}
        if sets.digest not in self:
            payload = _write_sets(sets)
            if any(len(value) >= WORTH_A_NAME for value in payload.values()):
                self.define(sets.digest, sets)
                payload["name"] = sets.digest
        if mask.added:
            payload["add"] = dict(mask.added)
        return payload

    def _read_set(self, key: str, value: object) -> Mask:
        field = f"mask.{key}"
        if key == "ref":
            name = _read_name(value, field)
            if name not in self._sets:
                raise ProtocolError(
                    f"{brief(name)} is not (or no longer) defined; send the mask itself",
                    field=field,
                )
            return self._sets[name]
        if key.endswith("_bits"):
            bits = _read_bits(value, field)
        else:
            ids = read_ids(value, field, most=LIMITS.bias_entries, known=False)
            bits = bitset(token for token in ids if token <= LIMITS.max_token_id)
        return Mask(allowed=bits) if key.startswith("allow") else Mask(forbidden=bits)


def _read_added(payload: object) -> tuple[tuple[int, float], ...]:
    biases = read_biases(payload, "mask.add")
    for token, bias in biases.items():
        if not FORBID_AT < bias < ALLOW_AT:
            raise ProtocolError(
                f"{brief(bias)} is not between {FORBID_AT:g} and {ALLOW_AT:g}; use allow or deny",
                field=f"mask.add[{token}]",
            )
    return tuple(sorted((t, v) for t, v in biases.items() if v != 0 and t != UNKNOWN_ID))


def _write_sets(mask: Mask) -> dict[str, Any]:
    forbidden = int.from_bytes(mask.forbidden, "little")
    if mask.allowed is None:
        verb, chosen = "deny", forbidden
    else:
        verb, chosen = "allow", int.from_bytes(mask.allowed, "little") & ~forbidden
    bits = chosen.to_bytes((chosen.bit_length() + 7) // 8, "little")
    if chosen.bit_count() * ID_LENGTH <= len(bits) * 5 // 4:
        return {verb: list(members(bits))} if chosen or verb == "allow" else {}
    return {f"{verb}_bits": b85encode(bits).decode("ascii")}


def _read_name(value: object, field: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= NAME_LENGTH:
        raise ProtocolError(
            f"must be a string of 1 to {NAME_LENGTH} characters, not {brief(value)}", field=field
        )
    return value


def _read_bits(value: object, field: str) -> bytes:
    longest = LIMITS.max_token_id // 8 + 1
    if isinstance(value, bytes):  # msgpack needs no base85
        bits = value
    elif isinstance(value, str) and len(value) <= longest * 5 // 4 + 5:
        try:
            bits = b85decode(value)
        except ValueError as error:
            raise ProtocolError(f"not base85: {error}", field=field) from None
    else:
        raise ProtocolError(f"must be a base85 bitset, not {brief(value)}", field=field)
    if len(bits) > longest:
        raise ProtocolError(f"has ids beyond {LIMITS.max_token_id}", field=field)
    return bits.rstrip(b"\0")
