"""The masks of a peer's last biases: LMQL says half of a vocabulary again with each token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from lmtp_replicate.protocol.masks import Mask
from lmtp_replicate.protocol.token_ids import read_biases

_SHORT: Final = 64
"""Entries up to which reading them is as fast."""
_MOST_ENTRIES: Final = 2**18
"""Kept in all: an entry takes about 100 bytes."""
_MOST: Final = 8

_Known = tuple[dict[Any, Any], Mask | None]


class RecentBiases:
    """Reading a long bias takes 3 ms, comparing it with one that has been read 0.1. Any thread."""

    def __init__(self) -> None:
        self._known: tuple[_Known, ...] = ()

    def mask_of(self, bias: object) -> Mask | None:
        """The mask of an op's `logit_bias`, which must not be changed afterwards. Raises
        `ProtocolError`."""
        if not isinstance(bias, dict) or len(bias) <= _SHORT:
            return Mask.from_logit_bias(read_biases(bias, "logit_bias"))
        for known, mask in self._known:
            if known == bias:
                return mask
        mask = Mask.from_logit_bias(read_biases(bias, "logit_bias"))
        self._known = tuple(_newest(((bias, mask), *self._known)))
        return mask


def _newest(known: tuple[_Known, ...]) -> Iterator[_Known]:
    """As many from the first on as may be kept."""
    entries = 0
    for bias, mask in known[:_MOST]:
        entries += len(bias)
        if entries > _MOST_ENTRIES:
            return
        yield bias, mask
