"""How large a batch of ops gets, from above and without writing it."""

from __future__ import annotations

from copy import copy

from lmtp_replicate.protocol.limits import LIMITS
from lmtp_replicate.protocol.masks import Mask
from lmtp_replicate.protocol.messages import Generate, Op, Score

_ID = 8
"""Bytes of an id in a JSON list, with its comma."""
_BIAS = 40
"""Bytes of an id with the bias that is added to its logit."""
_HARD_BIAS = 18
"""Bytes of an id that `logit_bias` forbids or allows."""
_REST = 1024
"""More bytes than an op's other fields take, its model's name left aside."""


class BatchSize:
    """Grows op by op, as far as `LIMITS` lets one message do.

    names_masks: the batch says equal masks once and then by name (see `mask_names`). There is
    always room for one MODEL_INFO beside what is counted.
    """

    def __init__(self, *, names_masks: bool, model: str = "") -> None:
        self._names_masks = names_masks
        self._rest = _REST + len(model.encode())
        self._ops = 1
        self._bytes = self._rest
        self._ids = 0
        self._named: frozenset[str] = frozenset()

    def with_op(self, op: Op) -> BatchSize | None:
        """The size with `op` in addition; None when that would be too large."""
        more = copy(self)
        more._ops += 1
        more._bytes += self._rest + _ID * _ids_of(op)
        more._ids += _ids_of(op)
        if isinstance(op, Generate) and op.mask is not None:
            more._count_mask(op.mask)
        fits = (
            more._ops <= LIMITS.ops_per_batch
            and more._bytes <= LIMITS.message_bytes
            and more._ids <= LIMITS.open_ids
        )
        return more if fits else None

    def _count_mask(self, mask: Mask) -> None:
        sets = [bits for bits in (mask.allowed, mask.forbidden) if bits]
        self._ids += len(mask.added) + sum(map(len, sets))
        self._bytes += _BIAS * len(mask.added)
        if not self._names_masks:
            self._bytes += _HARD_BIAS * sum(int.from_bytes(bits).bit_count() for bits in sets)
        elif mask.digest not in self._named:
            # An id list is used where it is about as short as base85 or shorter.
            self._bytes += 3 * max(map(len, sets), default=0) // 2
            if len(self._named) < LIMITS.mask_names:  # a later one displaces an earlier one
                self._named |= {mask.digest}


def _ids_of(op: Op) -> int:
    match op:
        case Generate():
            return len(op.prompt)
        case Score():
            return len(op.prompt) + len(op.scored)
        case _:
            return 0
