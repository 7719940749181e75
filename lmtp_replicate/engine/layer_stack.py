"""Decoder layers that follow one another, run by one call (kernels/decoder.c).

Between two calls of ours Python and torch's allocator take 40 microseconds, with caches that the
weights have driven them out of: as long as the smaller linear layers themselves.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lmtp_replicate.engine.attention import Scores
from lmtp_replicate.engine.compiled_attention import CompiledStep
from lmtp_replicate.engine.compiled_linear import CompiledLinear, LinearArguments
from lmtp_replicate.engine.compiled_norms import CompiledNorm, NormArguments
from lmtp_replicate.engine.kernels import Kernels
from lmtp_replicate.engine.kv_store import KVStore

_LINEARS = (*("query", "key", "value", "from_attention"), *("gate", "up", "down"))
_MOST_KEPT = 64
"""Tokens for which room is kept for the next step: that of a long prompt takes megabytes."""
_NORMS = ("before_attention", "before_mlp", "of_queries", "of_keys")


class _Layer(ctypes.Structure):
    """`Layer` in the source, which says what each field is."""

    _fields_ = (
        *((name, NormArguments) for name in _NORMS),
        *((name, LinearArguments) for name in _LINEARS),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("window", ctypes.c_int64),
        ("scaling", ctypes.c_float),
    )


class _Room(ctypes.Structure):
    """`Room` in the source."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in (
            *("normed", "added", "query", "key", "value", "seen", "gate", "up"),
            *("inputs", "long_keys"),
        )
    )


class Learned(NamedTuple):
    """What a layer's first call has shown: its place in the store, the scores that its attention
    asks for, and the address of the cosines by which its queries and keys are rotated."""

    layer: int
    scores: Scores
    cosines: int


@dataclass(eq=False, slots=True)
class StackedLayer:
    """`norms`: before attention and before the feed-forward layer, and, if there are, of each
    head's queries and keys. `linears`: to queries, keys and values, from attention, gate, up and
    down; None where our code has none for one of them."""

    norms: Sequence[CompiledNorm]
    linears: Sequence[CompiledLinear | None]
    head_dim: int
    learned: Learned | None = None


class LayerStack:
    """Runs `layers`, which follow one another. `most_tokens`: over how many it can. `is_last`:
    whether no other layer follows, so that of the tokens that are not wanted nobody needs what the
    last one makes."""

    def __init__(
        self, layers: Sequence[StackedLayer], compiled: Kernels, *, is_last: bool = False
    ) -> None:
        self._layers = layers
        self._is_last = is_last
        self._function = compiled.run_layers
        self._store: Callable[[], KVStore | None] = lambda: None
        self._parts: list[Tensor] = []
        self._tokens = 0
        """For so many there is room in `_parts`."""
        self.most_tokens = 0
        self.size = self.head_dim = self.row_room = 0
        """Numbers of a hidden state, and of a head, and the bytes that a linear layer's kernel
        needs for a row, where it can run anything."""
        self._learned = False
        """Whether all layers have learned, and rotate alike."""
        linears = [linear for layer in layers for linear in layer.linears if linear is not None]
        kernels = {linear.kernel for linear in linears}
        shapes = {(layer.head_dim, *_outputs(layer)) for layer in layers}
        is_whole = len(linears) == len(_LINEARS) * len(layers) and all(map(_fits, layers))
        if is_whole and len(kernels) == len(shapes) == 1:
            (kernel,) = kernels
            self.most_tokens = kernel.most_rows
            self._multiply = ctypes.cast(kernel.function, ctypes.c_void_p)
            ((dim, query, key, value, size, gate, up, _),) = shapes
            self._heads = query // dim, key // dim, dim
            self.size, self.head_dim = size, dim
            self._widths = (query, key, value, query), (gate, up)
            """Numbers of a token in the parts of the room for attention and for what follows it."""
            self.row_room = max(linear.row_room for linear in linears)

    def __len__(self) -> int:
        """Number of layers."""
        return len(self._layers)

    def takes(self, tokens: int, step: CompiledStep) -> bool:
        """Whether it can run all layers over the `tokens` of `step`."""
        return tokens <= self.most_tokens and self._has_learned() and step.takes_all(*self._heads)

    def run(self, x: Tensor, rotary: Sequence[Tensor], step: CompiledStep) -> Tensor:
        """The hidden states that the last layer makes of the first one's, `x` `[1, T, size]`, which
        are lost; if that is the model's last one, of wanted tokens only. `rotary`: cosines and
        sines, `[1, T, head_dim]`."""
        cosines, sines = (tensor.contiguous() for tensor in rotary)
        rotated = cosines.data_ptr(), sines.data_ptr()
        self.call(self._function, (x.data_ptr(),), x.shape[1], x, rotated, step)
        step.finished.update(self._layers)
        return x

    def call(
        self,
        function: Any,
        first: Sequence[object],
        tokens: int,
        like: Tensor,
        rotary: Sequence[int],
        step: CompiledStep,
    ) -> None:
        """Call `function` of kernels/decoder.c to run the layers over the `tokens` of `step`, with
        `first` before the arguments that all its functions have. `rotary`: the addresses of cosines
        and sines. `like`: of the hidden states' dtype."""
        if step.store is not self._store():
            self._look_into(step.store, like)
        if tokens != self._tokens:
            self._make_room(tokens, like)
        long_keys = step.room_for_long(*self._heads[1:])
        self._room.long_keys = None if long_keys is None else long_keys.data_ptr()
        common = ctypes.byref(step.common(rotary, *self._heads))
        layers = self._arguments, len(self._layers)
        wanted = step.wanted() if self._is_last else None
        only = None if wanted is None else ctypes.byref(wanted.arguments)
        room = ctypes.byref(self._room)
        function(*first, *layers, common, tokens, only, room, self._multiply)
        if tokens > _MOST_KEPT:
            self._parts, self._tokens = [], 0

    def _look_into(self, store: KVStore, like: Tensor) -> None:
        """From now on the layers' keys and values, of `like`'s dtype, are in `store`."""
        _, kv_heads, dim = self._heads
        like = like.new_empty(1, kv_heads, 1, dim)
        self._arguments = (_Layer * len(self._layers))(*map(_arguments, self._layers))
        for arguments, layer in zip(self._arguments, self._layers, strict=True):
            assert layer.learned is not None
            keys, values = store.layer(layer.learned.layer, like, like)
            arguments.keys, arguments.values = keys.data_ptr(), values.data_ptr()
            arguments.window = layer.learned.scores.window or 0
            arguments.scaling = layer.learned.scores.scaling
        self._store = weakref.ref(store)

    def _make_room(self, tokens: int, like: Tensor) -> None:
        """From now on steps have so many tokens: those of decode steps are rarely others."""
        self._parts = []  # before there are new ones
        normed, added = like.new_empty(tokens, self.size), like.new_empty(tokens, self.size)
        # What attention needs is no longer needed by what follows it.
        shared = like.new_empty(tokens, max(map(sum, self._widths)))
        inputs = torch.empty(tokens, self.row_room, dtype=torch.int8)
        self._parts = [normed, added, shared, inputs]
        starts = [start for part in self._widths for start in accumulate(part[:-1], initial=0)]
        within = [shared.data_ptr() + tokens * start * like.itemsize for start in starts]
        pointers = normed.data_ptr(), added.data_ptr(), *within, inputs.data_ptr()
        self._room = _Room(*pointers)
        self._tokens = tokens

    def _has_learned(self) -> bool:
        """Whether all layers have, and all of them rotate by the same cosines: then for good."""
        if not self._learned:
            learned = [layer.learned for layer in self._layers]
            cosines = {each.cosines for each in learned if each}
            self._learned = None not in learned and len(cosines) == 1
        return self._learned


def _fits(layer: StackedLayer) -> bool:
    """Whether each part of a layer, which has all, makes as many numbers as the next one takes: C
    does not look."""
    sizes = [(each.arguments.inputs, each.arguments.outputs) for each in layer.linears if each]
    query, key, value, from_attention, gate, up, down = sizes
    size, dim = down[1], layer.head_dim
    return (
        {query[0], key[0], value[0], from_attention[1], gate[0], up[0]} == {size}
        and key[1] == value[1]
        and query[1] % dim == key[1] % dim == 0
        and from_attention[0] == query[1]
        and gate[1] == up[1] == down[0]
        and [norm.dim for norm in layer.norms] in ([size] * 2, [size, size, dim, dim])
    )


def _outputs(layer: StackedLayer) -> list[int]:
    """How many each linear layer has."""
    return [linear.arguments.outputs for linear in layer.linears if linear is not None]


def _arguments(layer: StackedLayer) -> _Layer:
    """`layer` without what its first call shows."""
    norms = [norm.arguments for norm in layer.norms]
    none = [NormArguments()] * (len(_NORMS) - len(norms))
    linears = [linear.arguments for linear in layer.linears if linear is not None]
    return _Layer(*norms, *none, *linears)
