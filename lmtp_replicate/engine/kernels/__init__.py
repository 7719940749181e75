"""Kernels of our own in C, for float32 and bfloat16 on a CPU: see the sources beside this file.

For each of the two they are a library, compiled at the first use.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch

from lmtp_replicate.engine.compiler import CompilationError, compile_library

FOLDER = Path(__file__).parent

_DEFINITIONS = {torch.float32: (), torch.bfloat16: ("BFLOAT16",)}
DTYPES = frozenset(_DEFINITIONS)
"""What a library can be compiled for."""


ANY_NUMBER: Final = 2**62
"""Of rows, or of tokens: no limit."""


@dataclass(frozen=True, eq=False, slots=True)
class LinearKernel:
    """A kernel for linear layers: `Multiply` in linear.h. `most_rows`: that it takes, or is the
    fastest for."""

    function: Any
    most_rows: int


class Kernels:
    """A compiled library and what its functions can take, which depends on the CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.functions = library
        self.width = self.limit("width")
        """Numbers in a vector."""
        self.attention_dim = self.limit("attention_dim")
        """Largest size of a head."""
        self.attention_shared = self.limit("attention_shared")
        """Most query heads to a key head."""
        self.keep = self._function("keep", c_void_p)
        self.attend = self._function("attend", c_void_p)
        self.gate = self._function("gate", *[c_void_p] * 2, c_int64)
        self.choice = self._function("choice", c_void_p, *[c_int64] * 3, c_void_p)
        self.rms_norm = self._function("rms_norm", *[c_void_p] * 4, *[c_int64] * 2, c_float)
        layers = c_void_p, c_int64, c_void_p, c_int64, *[c_void_p] * 3
        self.run_layers = self._function("run_layers", c_void_p, *layers)
        self.run_model = self._function("run_model", *[c_void_p] * 2, *layers)
        allows_tiles = hasattr(library, "lmtp_allow_tiles") and bool(library.lmtp_allow_tiles())
        self.has_tiles = allows_tiles and hasattr(library, "lmtp_linear_tiles")
        """Whether our code in bfloat16 by AMX can be used."""
        self.without_tiles = self._linear("linear", "linear_rows")
        """For weights that oneDNN has laid out. This and the next ones are None where the CPU, or
        the dtype, has none."""
        tiles = self._linear("linear_tiles", "tiles_rows") if self.has_tiles else None
        self.linear = tiles or self.without_tiles
        """The same, by AMX where it can be used."""
        self.linear_digits = self._linear("linear_digits") if allows_tiles else None
        """In float32 by whole numbers of three digits."""
        self.linear_bytes = self._linear("linear_bytes")
        """In float32 by weights of three bytes."""
        self.linear_bfloat16 = self._linear("linear_bfloat16")
        """By weights in bfloat16 and products of float32."""
        self.linear_float16 = self._linear("linear_float16")
        """The same by weights in float16."""
        self.linear_block = self.limit("linear_outputs"), self.limit("linear_inputs")
        """Outputs and inputs of the blocks in which oneDNN has to have laid out a weight."""

    def _linear(self, name: str, limit: str | None = None) -> LinearKernel | None:
        """The kernel of that name, if there is one. limit: names the constant that tells the most
        rows, if they are limited."""
        if not hasattr(self.functions, f"lmtp_{name}"):
            return None
        pointers = [c_void_p] * 2
        function = self._function(name, *pointers, c_int64, c_void_p, c_int64, c_void_p)
        return LinearKernel(function, ANY_NUMBER if limit is None else self.limit(limit))

    def _function(self, name: str, *argtypes: Any) -> Any:
        function = getattr(self.functions, f"lmtp_{name}")
        function.argtypes, function.restype = argtypes, None
        return function

    def limit(self, name: str) -> int:
        """A constant of the library."""
        return ctypes.c_int32.in_dll(self.functions, f"lmtp_{name}").value


@cache
def kernels(dtype: torch.dtype) -> tuple[Kernels | None, str]:
    """The kernels for a model in `dtype`, or None; and why."""
    if dtype not in DTYPES:
        return None, "only for float32 and bfloat16"
    try:
        library = compile_library(FOLDER, _DEFINITIONS[dtype])
    except CompilationError as error:
        return None, str(error)
    return Kernels(library), "compiled for this CPU"
