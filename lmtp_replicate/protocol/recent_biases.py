"""The masks of a peer's last biases: LMQL says half of a vocabulary again with each token."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from lmtp_replicate.protocol.masks import Mask
from lmtp_replicate.protocol.token_ids import read_biases

_SHORT: Final = 64
"""Entries up to which reading them is as fast."""
_MOST_ENTRIES: Final = 2**18
"""Kept in all: an entry takes about 100 bytes."""
_MOST: Final = 8
_LONGEST_KEY: Final = 8
"""Characters of an id, where ids are strings: a peer may fill longer ones up with zeros."""


class _Known(NamedTuple):
    bias: dict[Any, Any]
    kinds: set[type]
    """Of its ids."""
    mask: Mask | None


class RecentBiases:
    """Reading a long bias takes 3 ms, comparing it with one that has been read 0.3. Any thread."""

    def __init__(self) -> None:
        self._known: tuple[_Known, ...] = ()

    def mask_of(self, bias: object) -> Mask | None:
        """The mask of an op's `logit_bias`, which must not be changed afterwards. Raises
        `ProtocolError`."""
        for known in self._known if isinstance(bias, dict) else ():
            if known.bias == bias and known.kinds == {*map(type, bias)}:  # 5.0 is no id
                return known.mask
        read = read_biases(bias, "logit_bias")
        mask = Mask.from_logit_bias(read)
        if isinstance(bias, dict) and _may_be_kept(bias, read):
            self._known = _newest((_Known(bias, {*map(type, bias)}, mask), *self._known))
        return mask


def _may_be_kept(bias: dict[Any, Any], read: dict[int, float]) -> bool:
    """Whether what equals `bias` would be read alike, and `bias` is worth it and no larger than it
    has to be."""
    return (
        len(bias) > _SHORT
        and len(read) == len(bias)  # an id that is said twice has its last bias
        and {0, 1}.isdisjoint(bias.values())  # which False and True equal, that are no biases
        and not any(isinstance(key, str) and len(key) > _LONGEST_KEY for key in bias)
    )


def _newest(known: tuple[_Known, ...]) -> tuple[_Known, ...]:
    """As many from the first on as may be kept."""
    kept: list[_Known] = []
    entries = 0
    for each in known[:_MOST]:
        if entries + len(each.bias) <= _MOST_ENTRIES:
            entries += len(each.bias)
            kept.append(each)
    return tuple(kept)
