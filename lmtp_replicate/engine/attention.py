"""Attention over packed streams, plugged into transformers' models.

transformers calls a registered function in place of a model's own attention
(https://huggingface.co/docs/transformers/attention_interface) and hands it the extra keyword
arguments of the model's forward: that is how a step's layout gets here. Everything else in the
model sees one dense row of tokens. What a model asks of attention beyond what stands here is
refused, so that the proof at load turns to the fallback instead of computing something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from lmtp_replicate.engine.groups import Group
from lmtp_replicate.engine.kv_store import KVStore
from lmtp_replicate.engine.layout import Layout

PACKED = "lmtp_packed"

_IGNORED = {"position_ids", "cache_position", "layer_idx"}
"""The layout says it already."""


@dataclass(frozen=True, slots=True)
class Scores:
    """How a layer turns queries and keys into weights. `sinks`: `[query_head]`, one more logit per
    head that takes its share of the softmax and gives nothing (gpt-oss)."""

    scaling: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None

    @property
    def are_plain(self) -> bool:
        """Whether SDPA computes them."""
        return self.softcap is None and self.sinks is None


class Step(Protocol):
    """What travels through the model's forward to its attention."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        """See `packed_attention`."""


@dataclass(frozen=True, slots=True)
class PackedStep:
    """A step of any works."""

    layout: Layout
    store: KVStore

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        layout, store = self.layout, self.store
        store.write(layer, layout.addresses.to(key.device), key, value)
        output = value.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
        for group in layout.groups:
            attended = self.attend_group(layer, group, query[0, :, group.packed], scores)
            output[0, group.packed] = attended
        return output

    def attend_group(self, layer: int, group: Group, query: Tensor, scores: Scores) -> Tensor:
        """Attention of the group's `query` `[query_head, token, dim]` over what the store holds:
        `[token, query_head, dim]`."""
        keys, values = group.source.read(self.store, layer, group.seen(scores.window))
        return _attend(query, keys, values, group, scores)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_step: Step,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of `query` `[1, query_head, T, dim]` over the streams' stored keys and values and
    the new ones, `key` and `value` `[1, kv_head, T, dim]`. Returns `[1, T, query_head, dim]`.
    Raises NotImplementedError for what it does not know."""
    _refuse_unknown(kwargs, attention_mask)
    layer: int = module.layer_idx  # type: ignore[assignment]
    scores = Scores(scaling or query.shape[-1] ** -0.5, sliding_window, softcap, s_aux)
    return packed_step.attend(layer, query, key, value, scores), None


def _refuse_unknown(kwargs: dict[str, Any], attention_mask: Tensor | None) -> None:
    if attention_mask is not None:
        raise NotImplementedError("the model brings an attention mask of its own")
    for name, value in kwargs.items():
        if name not in _IGNORED and not _asks_for_nothing(name, value):
            raise NotImplementedError(f"the model's attention asks for {name}={value!r}")


def _asks_for_nothing(name: str, value: object) -> bool:
    if name == "is_causal":
        return value is None or value is True
    if name == "dropout":
        return value == 0
    return value is None or value is False


def _attend(query: Tensor, keys: Tensor, values: Tensor, group: Group, scores: Scores) -> Tensor:
    """`query`: `[query_head, batch * count, dim]`; the result: `[batch * count, query_head, dim]`.

    Query heads that share a key head are folded where they need no copy of the keys: for single
    tokens into the query length, for a chunk (where kv heads become the batch) into the heads.
    """
    heads, length, dim = query.shape
    batch, kv_heads = keys.shape[:2]
    shared = heads // kv_heads
    # SDPA computes only what a causal mask leaves, when it is told and not given the mask.
    is_causal = scores.are_plain and group.count > 1 and group.is_causal(scores.window)
    mask = None if is_causal else group.mask(scores.window, query)
    sinks = None if scores.sinks is None else scores.sinks.view(kv_heads, shared)
    if group.count == 1:
        folded = query.transpose(0, 1).reshape(batch, kv_heads, shared, dim)
        sinks = None if sinks is None else sinks[None, :, :, None]
        return weigh(folded, keys, values, mask, scores, sinks).reshape(length, heads, -1)
    folded = query.reshape(kv_heads, shared, length, dim)
    keys, values = (
        t[0, :, None].expand(-1, shared, -1, -1)  # t: [1, kv_head, token, dim]
        for t in (keys, values)
    )
    sinks = None if sinks is None else sinks[:, :, None, None]
    if is_causal:
        output = scaled_dot_product_attention(
            folded, keys, values, is_causal=True, scale=scores.scaling
        )
    else:
        output = weigh(folded, keys, values, mask, scores, sinks)
    return output.reshape(heads, length, -1).transpose(0, 1)


def weigh(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scores: Scores,
    sinks: Tensor | None,
) -> Tensor:
    """softmax(softcap(query · keys) + mask) · values; SDPA where it can say so."""
    if scores.are_plain:
        return scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, scale=scores.scaling
        )
    logits = (query @ keys.transpose(-1, -2)).float() * scores.scaling
    if scores.softcap is not None:
        logits = torch.tanh(logits / scores.softcap) * scores.softcap
    if mask is not None:
        logits = logits + mask
    if sinks is not None:
        extra = sinks.to(logits.dtype).expand(*logits.shape[:-1], 1)
        logits = torch.cat([logits, extra], dim=-1)
    weights = torch.softmax(logits, dim=-1)[..., : keys.shape[2]]
    return weights.to(values.dtype) @ values


# With no function for masks of that name, transformers makes none. (With one, it would first look
# into the positions for packed sequences, and wait for the device to do so.)
AttentionInterface.register(PACKED, packed_attention)
