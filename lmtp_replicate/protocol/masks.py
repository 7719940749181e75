"""Which token ids an op allows, and what it adds to their logits.

A `Mask` is the decided form of LMTP's `logit_bias`: a bias of -100 or less forbids the id, one of
+100 or more whitelists it (any whitelisted id forbids all others), anything between is added.
Sets of ids are bitsets (bytes, id i is bit i % 8, least significant first, of byte i // 8), so
that half of a 128k vocabulary is 16 kB, hashes fast and expands on a device in one operation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

from lmtp_replicate.errors import ProtocolError
from lmtp_replicate.protocol.limits import LIMITS

FORBID_AT = -100.0
ALLOW_AT = 100.0
ONE = ord("1")


def bitset(ids: Iterable[int]) -> bytes:
    """The shortest bitset that holds `ids` (each >= 0)."""
    members = list(ids)
    if not members:
        return b""
    size = max(members) // 8 + 1
    if len(members) < size // 4:
        bits = bytearray(size)
        for token in members:
            bits[token >> 3] |= 1 << (token & 7)
        return bytes(bits)
    # As the digits of one binary number: less than half of the time for many ids.
    digits = bytearray(b"0") * (8 * size)
    for token in members:
        digits[token] = ONE
    digits.reverse()
    return int(digits, 2).to_bytes(size, "little")


def members(bits: bytes) -> Iterator[int]:
    """The ids of a bitset in ascending order."""
    for index, byte in enumerate(bits):
        while byte:
            low = byte & -byte
            yield (index << 3) + low.bit_length() - 1
            byte ^= low


@dataclass(frozen=True)
class Mask:
    """`allowed` (bitset, or None for "all"), `forbidden` (bitset) and `added` (id, bias) pairs in
    ascending order of id. An id is possible when it is in `allowed` and not in `forbidden`."""

    allowed: bytes | None = None
    forbidden: bytes = b""
    added: tuple[tuple[int, float], ...] = ()

    @classmethod
    def from_logit_bias(cls, bias: Mapping[int, float]) -> Mask | None:
        """The mask of a `logit_bias`; None when it changes nothing, that is: no mask at all.

        Ids beyond `LIMITS.max_token_id` exist in no vocabulary and are left out, but a whitelisted
        one still forbids all others.
        """
        # LMQL's usual mask is one bias for half of a vocabulary: few and plain passes over it.
        lowest, highest = min(bias.values(), default=0.0), max(bias.values(), default=0.0)
        known = LIMITS.max_token_id
        if highest >= ALLOW_AT:
            return cls(allowed=bitset([t for t, v in bias.items() if v >= ALLOW_AT and t <= known]))
        forbidden, added = b"", []
        if lowest <= FORBID_AT:
            forbidden = bitset([t for t, v in bias.items() if v <= FORBID_AT and t <= known])
        if highest > FORBID_AT:
            added = [(t, v) for t, v in bias.items() if v > FORBID_AT and v != 0 and t <= known]
        return cls(forbidden=forbidden, added=tuple(sorted(added))) if forbidden or added else None

    def to_logit_bias(self) -> dict[int, float]:
        """The `logit_bias` that says the same.

        Raises `ProtocolError` for a bias on an allowed id, which `logit_bias` has no words for.
        """
        bias = dict(self.added)
        if self.allowed is not None:
            allowed = dict.fromkeys(members(self.allowed), ALLOW_AT)
            if not bias.keys().isdisjoint(allowed):
                raise ProtocolError(
                    "a biased id cannot also be whitelisted; use the mask extension",
                    field="logit_bias",
                )
            # No id is allowed: whitelist one that no vocabulary has.
            bias |= allowed or {LIMITS.max_token_id + 1: ALLOW_AT}
        return bias | dict.fromkeys(members(self.forbidden), FORBID_AT)

    @cached_property
    def digest(self) -> str:
        """A short name for this mask's content, the same in every process."""
        state = blake2b(digest_size=12)
        for part in (self.allowed or b"", self.forbidden, repr(self.added).encode()):
            state.update(len(part).to_bytes(8, "little") + part)
        state.update(b"all" if self.allowed is None else b"some")
        return state.hexdigest()
