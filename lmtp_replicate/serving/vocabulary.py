"""Masks cut to the ids a model can produce."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lmtp_replicate.protocol.masks import Mask


@dataclass(frozen=True)
class TrimmedMask:
    """A mask without ids at or beyond the vocabulary's size, and how many were left out."""

    mask: Mask
    ignored: int


def trim(mask: Mask, vocab_size: int) -> TrimmedMask:
    """Leave ids outside the vocabulary out of `mask`. A whitelist stays one, also when nothing of
    it is left: that no token is possible then is for the engine to say."""
    allowed, forbidden = mask.allowed, mask.forbidden
    kept = tuple((token, bias) for token, bias in mask.added if token < vocab_size)
    inside = replace(
        mask,
        allowed=None if allowed is None else _below(allowed, vocab_size),
        forbidden=_below(forbidden, vocab_size),
        added=kept,
    )
    if inside == mask:
        return TrimmedMask(mask, 0)
    ignored = _count(allowed or b"") - _count(inside.allowed or b"")
    ignored += _count(forbidden) - _count(inside.forbidden)
    return TrimmedMask(inside, ignored + len(mask.added) - len(kept))


def _below(bits: bytes, vocab_size: int) -> bytes:
    """The members of a bitset that are less than `vocab_size`."""
    whole, rest = divmod(vocab_size, 8)
    if len(bits) <= whole:
        return bits
    last = bits[whole] & ((1 << rest) - 1)
    return bits[:whole] + (bytes([last]) if last else b"")


def _count(bits: bytes) -> int:
    return int.from_bytes(bits, "little").bit_count()
