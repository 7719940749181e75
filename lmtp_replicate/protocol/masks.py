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


def bitset(ids: Iterable[int]) -> bytes:
    """The shortest bitset that holds `ids` (each >= 0)."""
    members = list(ids)
    if not members:
        return b""
    bits = bytearray(max(members) // 8 + 1)
    for token in members:
        bits[token >> 3] |= 1 << (token & 7)
    return bytes(bits)


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
        known = [(token, value) for token, value in bias.items() if token <= LIMITS.max_token_id]
        if any(value >= ALLOW_AT for value in bias.values()):
            return cls(allowed=bitset(token for token, value in known if value >= ALLOW_AT))
        forbidden = bitset(token for token, value in known if value <= FORBID_AT)
        added = sorted((t, v) for t, v in known if v != 0 and v > FORBID_AT)
        return cls(forbidden=forbidden, added=tuple(added)) if forbidden or added else None

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
