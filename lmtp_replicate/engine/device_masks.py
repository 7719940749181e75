"""Masks of ops as tensors on the model's device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmtp_replicate.engine.transfer import to_device
from lmtp_replicate.protocol.masks import Mask

CAPACITY = 256
"""Masks kept. LMQL returns to the same few masks of a query again and again; one mask costs as
many bytes as the vocabulary has ids."""


@dataclass(frozen=True, slots=True)
class DeviceMask:
    """A mask cut to the vocabulary.

    forbidden: bool [vocab_size], true where the id is impossible. added_ids, added: int64 and
    float32 [n], the ids with a bias and the bias.
    """

    forbidden: Tensor
    added_ids: Tensor
    added: Tensor


class DeviceMasks:
    """Bounded cache from a mask's digest to its tensors; the least recently used go first."""

    def __init__(self, vocab_size: int, capacity: int = CAPACITY) -> None:
        self._vocab_size = vocab_size
        self._capacity = capacity
        self._masks: OrderedDict[tuple[str, torch.device], DeviceMask] = OrderedDict()

    def __len__(self) -> int:
        return len(self._masks)

    def apply(self, logits: Tensor, masks: Sequence[Mask | None]) -> Tensor:
        """`logits` (float32 [rows, vocab_size]) with each row's bias added and its forbidden ids
        at -inf, as a new tensor."""
        device = logits.device
        nothing = torch.zeros(self._vocab_size, dtype=torch.bool, device=device)
        found = [mask and self.get(mask, device) for mask in masks]
        biased = [(row, mask) for row, mask in enumerate(found) if mask and len(mask.added)]
        if biased:
            rows = [torch.full_like(mask.added_ids, row) for row, mask in biased]
            at = torch.cat(rows), torch.cat([mask.added_ids for _, mask in biased])
            added = torch.cat([mask.added for _, mask in biased])
            logits = logits.index_put(at, added, accumulate=True)
        forbidden = torch.stack([mask.forbidden if mask else nothing for mask in found])
        return logits.masked_fill(forbidden, -torch.inf)

    def get(self, mask: Mask, device: torch.device) -> DeviceMask:
        """The tensors of `mask` on `device`. Ids outside the vocabulary are ignored, except that
        a whitelist of nothing but such ids still forbids all others."""
        key = (mask.digest, device)
        found = self._masks.get(key)
        if found is None:
            found = self._masks[key] = self._expand(mask, device)
            if len(self._masks) > self._capacity:
                self._masks.popitem(last=False)
        self._masks.move_to_end(key)
        return found

    def _expand(self, mask: Mask, device: torch.device) -> DeviceMask:
        forbidden = self._members(mask.forbidden, device)
        if mask.allowed is not None:
            forbidden |= ~self._members(mask.allowed, device)
        pairs = [(token, bias) for token, bias in mask.added if token < self._vocab_size]
        ids = to_device([token for token, _ in pairs], torch.int64, device)
        added = to_device([bias for _, bias in pairs], torch.float32, device)
        return DeviceMask(forbidden, ids, added)

    def _members(self, bits: bytes, device: torch.device) -> Tensor:
        """bool [vocab_size], true for the ids in the bitset. The bits, not the booleans, cross to
        the device."""
        size = (self._vocab_size + 7) // 8
        padded = bytearray(bits[:size].ljust(size, b"\0"))
        packed = torch.frombuffer(padded, dtype=torch.uint8)
        if device.type == "cuda":
            packed = packed.pin_memory().to(device, non_blocking=True)  # see `to_device`
        shifts = torch.arange(8, dtype=torch.uint8, device=device)
        return ((packed.unsqueeze(1) >> shifts) & 1).bool().flatten()[: self._vocab_size]
