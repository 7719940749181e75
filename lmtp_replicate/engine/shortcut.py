"""A model in one call, without transformers' forward around its layers (kernels/decoder.c).

Where all decoder layers are one call (`LayerStack`), what is left is the embedding, the norm and
the head. What transformers does besides (looking for hooks, preparing masks that nobody reads, a
call for each layer that has been run) and a dozen calls of torch, each with caches from which the
weights have driven it, take more than a millisecond of a decode step of 15.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from lmtp_replicate.engine.attention import Step
from lmtp_replicate.engine.compiled_attention import CompiledStep
from lmtp_replicate.engine.compiled_layers import CompiledLayer
from lmtp_replicate.engine.compiled_linear import CompiledLinear, LinearArguments
from lmtp_replicate.engine.compiled_norms import CompiledNorm, NormArguments
from lmtp_replicate.engine.hooks import is_watched
from lmtp_replicate.engine.kernels import kernels
from lmtp_replicate.engine.layer_stack import LayerStack
from lmtp_replicate.engine.layout import Layout
from lmtp_replicate.engine.packed_linear import PackedLinear

_PARTS = {"embed_tokens", "layers", "norm", "rotary_emb"}
"""All parts of a model below its head that is run here. That it puts them together as Llama does
(with no factor on embeddings or logits, say) is for `tried_shortcut` to find out."""
_LEAST_POSITIONS = 1024
"""The first table of cosines and sines has so many, or as many as the context."""


class _Ends(ctypes.Structure):
    """`Ends` in the source, which says what each field is."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("embeddings", "cosines", "sines")),
        ("norm", NormArguments),
        ("head", ctypes.POINTER(LinearArguments)),
        ("multiply", ctypes.c_void_p),
    )


class _Asked(ctypes.Structure):
    """`Asked` in the source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("ids", "positions", "rows")),
        ("rows_count", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("hidden", "cosines", "sines", "logits")),
    )


class _Parts(NamedTuple):
    """Of a model, as far as they are not layers."""

    weight: Tensor
    """The embedding's, `[id, size]`."""
    rotary: nn.Module
    norm: CompiledNorm
    head: CompiledLinear


class Shortcut:
    """Runs `model`, of such `parts`, whose layers are `stack`'s, over positions before
    `context_length`. Hooks that are put on the model later keep it from that; those on its parts
    are not called."""

    def __init__(
        self, model: nn.Module, stack: LayerStack, parts: _Parts, context_length: int
    ) -> None:
        self._model = model
        self._stack = stack
        self._weight, self._rotary, norm, self._head = parts
        self._context_length = context_length
        compiled, _ = kernels(self._weight.dtype)
        assert compiled is not None
        self._function = compiled.run_model
        self._ends = _Ends(
            embeddings=self._weight.data_ptr(),
            norm=norm.arguments,
            head=ctypes.pointer(self._head.arguments),
            multiply=ctypes.cast(self._head.kernel.function, ctypes.c_void_p),
        )
        self.is_used = False
        """Whether it has run anything yet."""
        self._rotate_until(1)

    def takes(self, step: Step, layout: Layout) -> TypeGuard[CompiledStep]:
        """Whether it can run `step`, which has that `layout`."""
        return (
            isinstance(step, CompiledStep)
            and not is_watched(self._model)
            and len(layout.rows) <= self._head.kernel.most_rows
            and layout.context <= self._context_length
            and self._stack.takes(len(layout.addresses), step)
        )

    def run(self, layout: Layout, step: CompiledStep) -> Tensor:
        """The logits of `layout`'s rows, `[rows, width]`. Only for what `takes` has taken: C does
        not look, neither at positions nor at ids."""
        self.is_used = True
        if layout.context > len(self._cosines):
            self._rotate_until(layout.context)
        tokens, rows, weight = len(layout.addresses), len(layout.rows), self._weight
        size, dim = weight.shape[1], self._stack.head_dim
        hidden = weight.new_empty(tokens, size + 2 * dim)
        start, each = hidden.data_ptr(), tokens * weight.itemsize
        room = start, start + size * each, start + (size + dim) * each
        logits = weight.new_empty(rows, self._head.arguments.outputs)
        given = layout.tokens.data_ptr(), layout.positions.data_ptr(), layout.rows.data_ptr()
        asked = _Asked(*given, rows, *room, logits.data_ptr())
        ends = ctypes.byref(self._ends), ctypes.byref(asked)
        self._stack.call(self._function, ends, tokens, weight, room[1:], step)
        return logits

    def _rotate_until(self, end: int) -> None:
        """Have cosines and sines, both `[position, head_dim]`, of all positions before `end`.
        Raises ValueError where the model has others for a position."""
        # Doubled, so that they are seldom computed anew; but beyond the model's context there is
        # rotary embedding that changes for all positions.
        count = min(max(2 * end, _LEAST_POSITIONS), self._context_length)
        found: Any = self._rotary(self._weight[:1, None], torch.arange(count)[None])
        if any(part.shape != (1, count, self._stack.head_dim) for part in found):
            raise ValueError("its rotary embedding has not one angle for each number of a head")
        cosines, sines = (part[0].to(self._weight.dtype).contiguous() for part in found)
        self._cosines, self._sines = cosines, sines
        self._ends.cosines, self._ends.sines = cosines.data_ptr(), sines.data_ptr()


def shortcut_for(model: nn.Module, context_length: int) -> tuple[Shortcut | None, str]:
    """The one for `model`, whose layers have run, or None; and why. Whether it computes the same
    is not known yet."""
    body: Any = getattr(model, "model", None)
    if _parts_of(model) != {"model", "lm_head"} or _parts_of(body) != _PARTS:
        return None, "it has other parts than Llama's"
    embedding, norm, head = body.embed_tokens, body.norm.forward, model.lm_head
    if any(map(is_watched, (model, body, embedding, body.rotary_emb))):
        return None, "it has hooks"
    first = vars(body.layers[0]).get("forward")
    if not isinstance(first, CompiledLayer) or first.stack is None:
        return None, "its layers are not compiled"
    if len(first.stack) != len(body.layers) or not first.stack.most_tokens:
        return None, "its layers are not one call"
    if not isinstance(norm, CompiledNorm) or not isinstance(head, PackedLinear):
        return None, "its last norm or its head is not compiled"
    if head.compiled is None or not _fit(embedding, norm, head, first.stack):
        return None, "its embedding or its head is of another kind or size than ours"
    parts = _Parts(embedding.weight, body.rotary_emb, norm, head.compiled)
    return Shortcut(model, first.stack, parts, context_length), "all its parts are compiled"


def _parts_of(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _fit(embedding: Any, norm: CompiledNorm, head: PackedLinear, stack: LayerStack) -> bool:
    """Whether each part makes as many numbers as the next one takes: C does not look."""
    if type(embedding) is not nn.Embedding or embedding.max_norm is not None:
        return False
    weight = embedding.weight
    assert head.compiled is not None
    return (
        weight.is_contiguous()
        and weight.device.type == "cpu"
        and weight.dtype == norm.dtype == head.weight.dtype
        and weight.shape[1] == norm.dim == head.in_features == stack.size
        and weight.shape[0] >= head.out_features  # ids are those that the head has
        and head.compiled.row_room <= stack.row_room
    )
