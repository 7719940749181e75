"""Kernels of our own in C, for float32 and bfloat16 on a CPU: see the sources beside this file.

For each of the two they are a library, compiled at the first use.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lmtp_replicate.engine.compiler import CompilationError, compile_library

FOLDER = Path(__file__).parent

_DEFINITIONS = {torch.float32: (), torch.bfloat16: ("BFLOAT16",)}
DTYPES = frozenset(_DEFINITIONS)
"""What a library can be compiled for."""


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
        self.gate = self._function("gate", *[c_void_p] * 2, c_int64)
        self.rms_norm = self._function("rms_norm", *[c_void_p] * 4, *[c_int64] * 2, c_float)
        self.few_rows = self._linear("linear", "linear_rows")
        """A linear layer, and the most rows that it takes, or is the fastest for."""
        self.has_tiles = hasattr(library, "lmtp_linear_tiles") and bool(library.lmtp_allow_tiles())
        """Whether our code in bfloat16 by AMX can be used."""
        tiles = self._linear("linear_tiles", "tiles_rows") if self.has_tiles else None
        self.linear, self.linear_rows = tiles or self.few_rows
        has_digits = hasattr(library, "lmtp_linear_digits") and library.lmtp_allow_tiles()
        self.linear_digits: Any = (
            self._function("linear_digits", c_void_p, c_int64) if has_digits else None
        )
        """Some in float32 of any number of rows, by whole numbers; None where the CPU cannot."""
        self.linear_block = self.limit("linear_outputs"), self.limit("linear_inputs")
        """Outputs and inputs of the blocks in which oneDNN has to have laid out a weight."""

    def _linear(self, name: str, limit: str) -> tuple[Any, int]:
        return self._function(name, *[c_void_p] * 4, *[c_int64] * 3), self.limit(limit)

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
