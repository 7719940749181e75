"""A model in one call, without transformers' forward around its layers (kernels/decoder.c).

Where all decoder layers are one call (`LayerStack`), what is left is the embedding, the norm and
the head. What transformers does besides (looking for hooks, preparing masks that nobody reads, a
call for each layer that has been run) and a dozen calls of torch, each with caches from which the
weights have driven it, take more than a millisecond of a decode step of 15.
"""

from __future__ import annotations

import ctypes
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from lmtp_replicate.engine.attention import Step
from lmtp_replicate.engine.compiled_attention import CompiledStep
from lmtp_replicate.engine.compiled_linear import CompiledLinear, LinearArguments
from lmtp_replicate.engine.compiled_norms import CompiledNorm, NormArguments
from lmtp_replicate.engine.kernels import Kernels
from lmtp_replicate.engine.layer_stack import LayerStack
from lmtp_replicate.engine.layout import Layout
from lmtp_replicate.engine.packed_linear import PackedLinear

_PARTS = {"embed_tokens", "layers", "norm", "rotary_emb"}
"""All parts of a model below its head that is run here. That it puts them together as Llama does
(with no factor on embeddings or logits, say) is for the first step to find out."""
_LEAST_POSITIONS = 1024
"""Whose cosines and sines are computed at once."""


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


class Shortcut:
    """Computes what `model` does, whose layers are `stack`'s, for positions before
    `context_length`. `parts`: its embedding, rotary embedding, last norm and head. Hooks on any of
    them are not called."""

    def __init__(
        self,
        model: nn.Module,
        stack: LayerStack,
        parts: tuple[nn.Embedding, nn.Module, CompiledNorm, CompiledLinear],
        compiled: Kernels,
        context_length: int,
    ) -> None:
        embedding, self._rotary, norm, self._head = parts
        self._model = model
        self._stack = stack
        self._function = compiled.run_model
        self._context_length = context_length
        self._weight = embedding.weight
        self._ends = _Ends(
            embeddings=self._weight.data_ptr(),
            norm=norm.arguments,
            head=ctypes.pointer(self._head.arguments),
            multiply=ctypes.cast(self._head.kernel.function, ctypes.c_void_p),
        )
        self._rotations: tuple[Tensor, Tensor] | None = None
        """Cosines and sines of the first positions, both `[position, head_dim]`."""
        self.agrees: bool | None = None
        """Whether it computes the same; None until its first step has shown it."""

    def takes(self, step: Step, layout: Layout) -> TypeGuard[CompiledStep]:
        """Whether it can run `step`, which has that `layout`."""
        rows = len(layout.rows)
        return (
            self.agrees is not False
            and isinstance(step, CompiledStep)
            and rows <= self._head.kernel.most_rows
            and (rows > 0 or self.agrees is True)  # without logits nothing can be compared
            and self._stack.takes(len(layout.addresses), step)
        )

    def run(self, layout: Layout, step: CompiledStep) -> Tensor:
        """The logits of `layout`'s rows, `[rows, width]`, as `whole_forward` computes them, bit for
        bit: with the first step, that is found out. Only for what `takes` has taken."""
        if self.agrees is not None:
            return self._run(layout, step)
        whole = whole_forward(self._model, layout.tokens, layout.positions, layout.rows, step)
        # Keys and values are written once more, at the same places.
        self.agrees = self._can_rotate(layout) and torch.equal(whole, self._run(layout, step))
        return whole

    def _run(self, layout: Layout, step: CompiledStep) -> Tensor:
        self._rotate_until(_end_of(layout))
        assert self._rotations is not None
        tokens, rows, weight = len(layout.addresses), len(layout.rows), self._weight
        size, dim = weight.shape[1], self._rotations[0].shape[1]
        hidden = weight.new_empty(tokens, size + 2 * dim)
        start, each = hidden.data_ptr(), tokens * weight.itemsize
        room = start, start + size * each, start + (size + dim) * each
        logits = weight.new_empty(rows, self._head.arguments.outputs)
        given = layout.tokens.data_ptr(), layout.positions.data_ptr(), layout.rows.data_ptr()
        asked = _Asked(*given, rows, *room, logits.data_ptr())
        ends = ctypes.byref(self._ends), ctypes.byref(asked)
        self._stack.call(self._function, ends, tokens, weight, (None, None), step)
        return logits

    def _can_rotate(self, layout: Layout) -> bool:
        """Whether there is one cosine and one sine for each position and number of a head."""
        self._rotate_until(_end_of(layout))
        return self._rotations is not None

    def _rotate_until(self, end: int) -> None:
        """Have cosines and sines of all positions before `end`."""
        known = 0 if self._rotations is None else len(self._rotations[0])
        if end <= known:
            return
        # Doubled, so that they are seldom computed anew; but beyond the model's context there is
        # rotary embedding that changes for all positions.
        count = min(max(2 * end, _LEAST_POSITIONS), self._context_length)
        found: Any = self._rotary(self._weight, torch.arange(count)[None])
        if all(part.shape == (1, count, self._stack.head_dim) for part in found):
            cosines, sines = (part[0].to(self._weight.dtype).contiguous() for part in found)
            self._rotations = cosines, sines
            self._ends.cosines, self._ends.sines = cosines.data_ptr(), sines.data_ptr()


def _end_of(layout: Layout) -> int:
    """One more than the last of its positions."""
    return max(max(group.positions) + group.count for group in layout.groups)


def whole_forward(
    model: nn.Module, tokens: Tensor, positions: Tensor, rows: Tensor | int, step: Step
) -> Tensor:
    """transformers' own forward of `model` over `tokens` at `positions`, both `[1, T]`: the logits
    of `rows`, or of all tokens where it is 0."""
    output = model(
        input_ids=tokens,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=rows,
        packed_step=step,
    )
    logits: Tensor = output.logits[0]
    return logits


def shortcut_for(
    model: nn.Module,
    stack: LayerStack,
    layers: list[nn.Module],
    compiled: Kernels,
    context_length: int,
) -> Shortcut | None:
    """The one for `model`, of which `stack` runs `layers`, if these are all it has and its other
    parts are such as C can run."""
    body: Any = getattr(model, "model", None)
    if {name for name, _ in model.named_children()} != {"model", "lm_head"}:
        return None
    if {name for name, _ in body.named_children()} != _PARTS or [*body.layers] != layers:
        return None
    norm, head = body.norm.forward, model.lm_head
    if not isinstance(norm, CompiledNorm) or not isinstance(head, PackedLinear):
        return None
    parts = body.embed_tokens, body.rotary_emb, body.norm, head
    if any(part._forward_hooks or part._forward_pre_hooks for part in (model, body, *parts)):
        return None
    if head.compiled is None or head.compiled.row_room > stack.row_room:
        return None
    if not _fit(body.embed_tokens, norm, head, stack.size):
        return None
    ends = body.embed_tokens, body.rotary_emb, norm, head.compiled
    return Shortcut(model, stack, ends, compiled, context_length)


def _fit(embedding: nn.Embedding, norm: CompiledNorm, head: PackedLinear, size: int) -> bool:
    """Whether each part makes as many numbers as the next one takes: C does not look."""
    weight = embedding.weight
    return (
        type(embedding) is nn.Embedding
        and embedding.max_norm is None
        and weight.is_contiguous()
        and weight.device.type == "cpu"
        and weight.dtype == norm.dtype == head.weight.dtype
        and weight.shape[1] == norm.dim == head.in_features == size
        and weight.shape[0] >= head.out_features  # ids are those that the head has
    )
