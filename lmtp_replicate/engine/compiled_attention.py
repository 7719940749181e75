"""Attention by our own C code (attention.c), for models in float32 on a CPU.

torch's kernel multiplies the few query rows of a decoding stream with a library made for large
matrices, and computes the whole of a masked one. Ours takes 0.5 to 0.6 of its time for decode steps
and for prompts, and 0.3 for a few tokens after a long prefix.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from lmtp_replicate.engine.attention import PackedStep, Scores
from lmtp_replicate.engine.compiler import CompilationError, compile_library
from lmtp_replicate.engine.kv_store import KVStore
from lmtp_replicate.engine.layout import Layout

_SOURCE = Path(__file__).with_name("attention.c")
_VECTOR: Final = 8
_MAX_DIM: Final = 256
_MAX_SHARED: Final = 96
"""Most query heads to a key head. As WIDTH, MAX_DIM and ROWS in the source."""


class _Arguments(ctypes.Structure):
    """`Step` in the source, which says what each field is."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("output", "query", "keys", "values", "works")),
        *((name, ctypes.c_int64) for name in ("token_stride", "head_stride")),
        *((name, ctypes.c_int64) for name in ("works_count", "heads", "kv_heads", "dim", "window")),
        ("scaling", ctypes.c_float),
    )


class CompiledAttention:
    """The compiled code."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._attend = library.lmtp_attend
        self._attend.argtypes = [ctypes.POINTER(_Arguments)]
        self._attend.restype = None

    def takes(self, query: Tensor, value: Tensor, scores: Scores) -> bool:
        """Whether it can compute them; arguments as `attend`'s."""
        heads, dim = query.shape[1], query.shape[3]
        return (
            query.dtype == value.dtype == torch.float32
            and query.device.type == "cpu"
            and scores.are_plain
            and value.shape[3] == dim <= _MAX_DIM
            and dim % _VECTOR == 0
            and heads <= _MAX_SHARED * value.shape[1]
        )

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, works: Tensor, scores: Scores
    ) -> Tensor:
        """Attention of `query` `[1, query_head, T, dim]` over a layer's whole `keys` and `values`,
        both `[place, kv_head, dim]`. `works`: int64 `[work, 4]`: first packed token, number of
        tokens, place of the stream's first key, position of the first token. Returns `[1, T,
        query_head, dim]`."""
        _, heads, tokens, dim = query.shape
        if query.stride(3) != 1:
            query = query.contiguous()
        output = query.new_empty(1, tokens, heads, dim)
        pointers = (t.data_ptr() for t in (output, query, keys, values, works))
        strides = query.stride(2), query.stride(1)
        sizes = works.shape[0], heads, keys.shape[1], dim, scores.window or 0
        self._attend(_Arguments(*pointers, *strides, *sizes, scores.scaling))
        return output


class CompiledStep:
    """A step of any works; what the compiled code does not know, torch computes. `is_used`: whether
    it has computed any."""

    def __init__(self, attention: CompiledAttention, layout: Layout, store: KVStore) -> None:
        self._attention = attention
        self._places = layout.places
        self._store = store
        self._plain = PackedStep(layout, store)
        self.is_used = False
        works = [
            (group.start + index * group.count, group.count, first, position)
            for group in layout.groups
            for index, position in enumerate(group.positions)
            for first in [group.first + index * group.capacity]
        ]
        self._works = torch.tensor(works, dtype=torch.int64)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        if not self._attention.takes(query, value, scores):
            return self._plain.attend(layer, query, key, value, scores)
        self.is_used = True
        self._store.write(layer, self._places, key, value)
        keys, values = self._store.whole(layer)
        return self._attention.attend(query, keys, values, self._works, scores)


def compiled_attention_for(
    device: torch.device, dtype: torch.dtype
) -> tuple[CompiledAttention | None, str]:
    """The compiled code for a model on `device` in `dtype`, or None; and why."""
    if device.type != "cpu" or dtype != torch.float32:
        return None, "only for float32 on a CPU"
    return _compiled()


@cache
def _compiled() -> tuple[CompiledAttention | None, str]:
    try:
        return CompiledAttention(compile_library(_SOURCE)), "compiled for this CPU"
    except CompilationError as error:
        return None, str(error)
