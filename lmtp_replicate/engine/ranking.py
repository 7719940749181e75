"""Which ids of a row come first: higher value, then lower id.

torch.topk and torch.sort promise nothing about equal values, and coarse logits (bfloat16, or a
head of few bits) tie often. Values and ids are therefore packed into one integer key each, which
has no ties.
"""

from __future__ import annotations

import torch
from torch import Tensor


def best_first(values: Tensor, count: int) -> Tensor:
    """Ids of the `count` best entries of each row of `values` (float32 [rows, width], no NaN
    wanted: where NaN ranks is unspecified), best first, equal values by ascending id. Returns
    int64 [rows, count]; needs 1 <= count <= width.
    """
    width = values.shape[1]
    if count == 1:  # torch.argmax promises the first of equal maxima
        return values.argmax(dim=1, keepdim=True)
    bits = (values + 0.0).view(torch.int32)  # + 0.0: -0.0 equals 0.0 but has other bits
    # IEEE 754 floats order like sign-magnitude integers; flip negatives to two's complement.
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    backwards = torch.arange(width - 1, -1, -1, device=values.device)
    keys = (ordered.long() << 32) | backwards
    if count == width:
        best = keys.sort(dim=1, descending=True).values
    else:
        best = keys.topk(count, dim=1).values
    return (width - 1) - (best & 0xFFFFFFFF)
