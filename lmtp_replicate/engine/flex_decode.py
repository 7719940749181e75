"""Attention of one new token per stream that reads keys and values where they lie: torch's
FlexAttention (https://docs.pytorch.org/docs/stable/nn.attention.flex_attention.html), whose kernel
is told for each stream which pages of the pool to visit."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from torch.nn.functional import pad

from lmtp_replicate.engine.attention import Scores
from lmtp_replicate.engine.decode_attention import Reads

ScoreChange = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


_SHAPES = 256
"""How many shapes may be compiled, one for each number of streams and kind of layer."""


@cache
def _compiler() -> Any:
    return torch.compile(flex_attention, fullgraph=True, dynamic=False)


def _compiled(*args: Any, **kwargs: Any) -> Any:
    """`flex_attention`, compiled for the shapes at hand, as the kernel for single queries wants to
    know the number of streams (torch._inductor.kernel.flex.flex_decoding). Raises where that fails
    instead of computing all of the pool."""
    config: Any = torch.compiler.config
    with config.patch(recompile_limit=_SHAPES):
        return _compiler()(*args, **kwargs)


class FlexDecodeAttention:
    """`function`: `flex_attention`, compiled. As it is, it computes all of the pool: for tests."""

    name = "flex"
    most = 1 << 21
    is_compiled = True

    def __init__(self, function: Callable[..., Any] = _compiled) -> None:
        self._function = function

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, reads: Reads, scores: Scores
    ) -> Tensor:
        tokens, shared = keys.shape[0], query.shape[1] // keys.shape[1]
        padded = 1 << (shared - 1).bit_length()
        attended = self._function(
            _regrouped(query, shared, padded)[:, :, None],
            *(tensor.transpose(0, 1)[None] for tensor in (keys, values)),
            score_mod=_softcapped(scores.softcap) if scores.softcap else None,
            block_mask=reads.once(
                ("blocks", scores.window), lambda: block_mask(reads, scores.window, tokens)
            ),
            scale=scores.scaling,
            enable_gqa=True,
            return_aux=AuxRequest(lse=True) if scores.sinks is not None else None,
        )
        if scores.sinks is None:
            return _regrouped(attended[:, :, 0], padded, shared)
        output, auxiliary = attended
        lse = _regrouped(auxiliary.lse, padded, shared)
        # A sink is one more term in the softmax's sum: a share is left to the others.
        share = torch.sigmoid(lse - scores.sinks[:, None].to(lse.dtype))
        return _regrouped(output[:, :, 0], padded, shared) * share.to(output.dtype)


def _regrouped(heads: Tensor, shared: int, wanted: int) -> Tensor:
    """`heads`, `[stream, query_head, dim]`, with `wanted` query heads to a key head instead of
    `shared`, of which zeros are the last or none. The kernel for single queries takes powers of two
    only, and the other one no pages as small as ours (torch._inductor.kernel.flex)."""
    if wanted == shared:
        return heads
    grouped = heads.reshape(len(heads), -1, shared, heads.shape[2])
    return pad(grouped, (0, 0, 0, wanted - shared)).flatten(1, 2)


def block_mask(reads: Reads, window: int | None, tokens: int) -> BlockMask:
    """Which pages of a pool of `tokens` tokens each stream's query visits, and what it sees there.

    The kernel visits the pages in the order of the tables, whatever their numbers; what it asks the
    mask for are addresses of the pool, so that `logical` leads back to the stream's tokens."""
    # The mask must not hold on to `reads`, which keeps it: only the garbage collector would free
    # the step's tensors then.
    size, lengths = reads.page_tokens, reads.lengths
    pages = tokens // size
    streams, width = reads.tables.shape
    order = torch.arange(width, device=reads.tables.device)
    last = (lengths[:, None] - 1) // size
    first = (lengths[:, None] - window).clamp_min(0) // size if window else last * 0
    # Behind a stream's last page its table repeats that one.
    own = torch.minimum(order, last)
    logical = reads.tables.new_full((streams, pages), -1)
    logical.scatter_(1, reads.tables.gather(1, own), own)
    # As wide as the pool, as torch demands; the kernel reads the first ones.
    visited = reads.tables.new_zeros(streams, pages, dtype=torch.int32)
    visited[:, :width] = reads.tables.gather(1, torch.minimum(first + order, last))[:, :pages]

    def sees(stream: Tensor, _head: Tensor, _query: Tensor, address: Tensor) -> Tensor:
        page = logical[stream, address // size]
        index = page * size + address % size
        is_seen = (page >= 0) & (index < lengths[stream])
        return is_seen & (index >= lengths[stream] - window) if window else is_seen

    return BlockMask.from_kv_blocks(
        (last - first + 1)[:, None].int(),
        visited[:, None, None],
        BLOCK_SIZE=(128, size),
        mask_mod=sees,
        seq_lengths=(1, tokens),
        compute_q_blocks=False,
    )


@cache
def _softcapped(most: float) -> ScoreChange:
    def change(
        score: Tensor, _stream: Tensor, _head: Tensor, _query: Tensor, _key: Tensor
    ) -> Tensor:
        return most * torch.tanh(score / most)

    return change
