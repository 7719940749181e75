"""Attention by our own C code (kernels/attention.c and attention_tiles.c), for models on a CPU.

torch's kernel multiplies the few query rows of a decoding stream with a library made for large
matrices, and computes the whole of a masked one. Ours takes 0.5 to 0.6 of its time for decode steps
and for prompts, and 0.3 for a few tokens after a long prefix. For long chunks in bfloat16 there is
code of its own where the CPU has AMX. Where that cannot be compiled, or the CPU has other
instructions for products of matrices, they are left to torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final

import torch
from torch import Tensor

from lmtp_replicate.engine.attention import PackedStep, Scores
from lmtp_replicate.engine.groups import Group, Neighbours
from lmtp_replicate.engine.kernels import ANY_NUMBER, Kernels, kernels
from lmtp_replicate.engine.kv_store import KVStore
from lmtp_replicate.engine.layout import Layout
from lmtp_replicate.engine.precision import cpu_multiplies_matrices_of_bfloat16
from lmtp_replicate.engine.transfer import whole_numbers
from lmtp_replicate.engine.wanted_rows import WantedRows

_LONGEST_BFLOAT16: Final = 16
"""Tokens of a stream in a step up to which ours is faster than torch's products of matrices."""
_LONGEST_BESIDE_TILES: Final = 8
"""The same for products by AMX."""


def _strided(name: str) -> list[tuple[str, type]]:
    strides = (f"{name}_token_stride", f"{name}_head_stride")
    return [(name, ctypes.c_void_p), *((stride, ctypes.c_int64) for stride in strides)]


class Arguments(ctypes.Structure):
    """`Step` in the source, which says what each field is."""

    _fields_ = (
        ("output", ctypes.c_void_p),
        *_strided("query"),
        *_strided("new_keys"),
        *_strided("new_values"),
        *((name, ctypes.c_void_p) for name in ("cosines", "sines", "keys", "values", "works")),
        *((name, ctypes.c_int64) for name in ("works_count", "heads", "kv_heads", "dim")),
        *((name, ctypes.c_int64) for name in ("window", "longest")),
        ("scaling", ctypes.c_float),
    )


class LongAttention:
    """The code for works of more tokens than `CompiledAttention` computes."""

    def __init__(self, compiled: Kernels) -> None:
        library = compiled.functions
        self._shared = compiled.limit("long_shared")
        self._divisor = compiled.limit("long_dim")
        self._group = compiled.limit("long_group")
        self._attend = library.lmtp_attend_long
        self._attend.argtypes = [ctypes.POINTER(Arguments), ctypes.c_void_p]
        self._attend.restype = None

    def takes(self, heads: int, kv_heads: int, dim: int) -> bool:
        """Whether it can compute them."""
        return heads <= self._shared * kv_heads and dim % self._divisor == 0

    def room_for(self, end: int) -> int:
        """Places for the keys of a work that ends at position `end`."""
        return -(-end // self._group) * self._group

    def attend(self, arguments: Arguments, room: Tensor) -> None:
        """Attend with the long works of `arguments`, whose rotated queries are where the output is
        to be. `room`: for keys and values of as many places as `room_for` says."""
        self._attend(arguments, room.data_ptr())


class CompiledAttention:
    """The code compiled for `dtype`. `longest`: most tokens of a work that it computes."""

    def __init__(self, compiled: Kernels, dtype: torch.dtype, longest: int = ANY_NUMBER) -> None:
        self.longest = longest
        self.dtype = dtype
        self._limits = compiled
        self._keep, self._attend = compiled.keep, compiled.attend
        self.long = LongAttention(compiled) if compiled.has_tiles else None
        """The code for longer works, if there is any."""

    def takes(self, query: Tensor, value: Tensor, scores: Scores) -> bool:
        """Whether it can compute them; arguments as `attend`'s."""
        heads, dim = query.shape[1], query.shape[3]
        return (
            query.dtype == value.dtype == self.dtype
            and query.device.type == "cpu"
            and scores.are_plain
            and value.shape[3] == dim <= self._limits.attention_dim
            and dim % self._limits.width == 0
            and heads <= self._limits.attention_shared * value.shape[1]
        )

    def attend(
        self,
        new: Sequence[Tensor],
        stored: Sequence[Tensor],
        works: Tensor,
        scores: Scores,
        rotary: Sequence[Tensor] = (),
        long_room: Tensor | None = None,
    ) -> Tensor:
        """Put the new keys and values in their places, and attend. `new`: queries, keys and values
        of the step's tokens, all `[1, head, T, dim]`. `stored`: a layer's keys and values, both
        `[place, kv_head, dim]`. `works`: int64 `[work, 4]`: first packed token, number of tokens,
        place of the stream's first key, position of the first token. `rotary`: cosines and sines
        `[1, T, dim]` by which queries and keys are yet to be rotated. Returns `[1, T, query_head,
        dim]`, of works with more than `longest` tokens only their rotated queries unless there is
        `long_room`, for `LongAttention`."""
        new = [tensor if tensor.stride(3) == 1 else tensor.contiguous() for tensor in new]
        _, heads, tokens, dim = new[0].shape
        output = new[0].new_empty(1, tokens, heads, dim)
        strided = [(t.data_ptr(), t.stride(2), t.stride(1)) for t in new]
        rotary = [tensor.contiguous() for tensor in rotary]
        rotated: list[int | None] = [tensor.data_ptr() for tensor in rotary] or [None, None]
        pointers = [*rotated, *(tensor.data_ptr() for tensor in (*stored, works))]
        sizes = works.shape[0], heads, stored[0].shape[1], dim, scores.window or 0, self.longest
        arguments = Arguments(
            output.data_ptr(), *chain(*strided), *pointers, *sizes, scores.scaling
        )
        self._keep(ctypes.byref(arguments))
        self._attend(ctypes.byref(arguments))
        if self.long is not None and long_room is not None:
            self.long.attend(arguments, long_room)
        return output


class CompiledStep:
    """A step of any works; what the compiled code does not know, torch computes. `is_used`: whether
    it has computed any. `finished`: layers of a `LayerStack` that have been run in this step."""

    def __init__(self, attention: CompiledAttention, layout: Layout, store: KVStore) -> None:
        self._attention = attention
        self.store = store
        self.finished: set[object] = set()
        self._plain = PackedStep(layout, store)
        self._long = [group for group in layout.groups if group.count > attention.longest]
        long = attention.long
        ends = [group.positions[0] + group.count for group in self._long]
        self._long_places = sum(map(long.room_for, ends)) if long is not None else 0
        """How many our code needs for the long works' keys."""
        self.is_used = False
        works = chain.from_iterable(_works(group) for group in layout.groups)
        self._works = whole_numbers([*chain.from_iterable(works)]).view(-1, 4)
        self._rows, self._tokens = layout.rows, len(layout.addresses)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        if not self.takes(query, value, scores):
            return self._plain.attend(layer, query, key, value, scores)
        return self._attend(layer, (query, key, value), scores, ())

    def attend_rotated(
        self,
        layer: int,
        new: tuple[Tensor, Tensor, Tensor],
        scores: Scores,
        rotary: tuple[Tensor, Tensor],
    ) -> Tensor:
        """The same for what `takes` has taken, with `new` queries, keys and values, of which the
        first two are yet to be rotated by `rotary`: cosines and sines, `[1, T, dim]`."""
        return self._attend(layer, new, scores, rotary)

    def takes(self, query: Tensor, value: Tensor, scores: Scores) -> bool:
        """Whether the compiled code knows this attention."""
        return self._attention.takes(query, value, scores)

    def takes_all(self, heads: int, kv_heads: int, dim: int) -> bool:
        """Whether it knows all works of the step."""
        long = self._attention.long
        return not self._long or (long is not None and long.takes(heads, kv_heads, dim))

    def common(self, rotary: Sequence[int], heads: int, kv_heads: int, dim: int) -> Arguments:
        """What is the same in all layers of such heads, for works that `takes_all` has taken.
        `rotary`: the addresses of cosines and sines, `[T, dim]`."""
        self.is_used = True
        cosines, sines = rotary
        return Arguments(
            cosines=cosines,
            sines=sines,
            works=self._works.data_ptr(),
            works_count=self._works.shape[0],
            heads=heads,
            kv_heads=kv_heads,
            dim=dim,
            longest=self._attention.longest,
        )

    def wanted(self) -> WantedRows | None:
        """The tokens whose logits are wanted; None where those are all."""
        if len(self._rows) == self._tokens:
            return None
        return WantedRows(self._rows, self._works)

    def room_for_long(self, kv_heads: int, dim: int) -> Tensor | None:
        """What the code for the long works needs in each layer, if there are any."""
        if not self._long_places:
            return None
        return torch.empty(2, self._long_places, kv_heads, dim, dtype=self._attention.dtype)

    def _attend(
        self,
        layer: int,
        new: tuple[Tensor, Tensor, Tensor],
        scores: Scores,
        rotary: Sequence[Tensor],
    ) -> Tensor:
        self.is_used = True
        stored = self.store.layer(layer, *new[1:])
        heads, kv_heads, dim = new[0].shape[1], new[1].shape[1], new[0].shape[3]
        takes_all = self.takes_all(heads, kv_heads, dim)
        room = self.room_for_long(kv_heads, dim) if takes_all else None
        output = self._attention.attend(new, stored, self._works, scores, rotary, room)
        for group in () if takes_all else self._long:
            query = output[0, group.packed].transpose(0, 1)
            output[0, group.packed] = self._plain.attend_group(layer, group, query, scores)
        return output


def _works(group: Group) -> Iterator[tuple[int, int, int, int]]:
    """Those of `group` as `CompiledAttention.attend` wants them."""
    source = group.source
    assert isinstance(source, Neighbours), "keys and values do not lie one after another"
    for index, position in enumerate(group.positions):
        first = source.first + index * source.capacity
        yield group.start + index * group.count, group.count, first, position


def compiled_attention_for(
    device: torch.device, dtype: torch.dtype
) -> tuple[CompiledAttention | None, str]:
    """The compiled code for a model on `device` in `dtype`, or None; and why."""
    if device.type != "cpu":
        return None, "only on a CPU"
    compiled, why = kernels(dtype)
    if compiled is None:
        return None, why
    has_products = dtype == torch.bfloat16 and cpu_multiplies_matrices_of_bfloat16()
    beside = _LONGEST_BESIDE_TILES if compiled.has_tiles else _LONGEST_BFLOAT16
    return CompiledAttention(compiled, dtype, beside if has_products else ANY_NUMBER), why
