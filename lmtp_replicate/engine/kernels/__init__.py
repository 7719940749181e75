"""Kernels of our own in C, for float32 and bfloat16 on a CPU: see the sources beside this file.

For each of the two they are a library, compiled at the first use.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

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
        self.width = self._limit("width")
        """Numbers in a vector."""
        self.attention_dim = self._limit("attention_dim")
        """Largest size of a head."""
        self.attention_shared = self._limit("attention_shared")
        """Most query heads to a key head."""
        self.linear = library.lmtp_linear
        self.linear_rows = self._limit("linear_rows")
        """Most that `linear` takes, or is the fastest for."""
        if hasattr(library, "lmtp_linear_tiles") and library.lmtp_allow_tiles():
            self.linear, self.linear_rows = library.lmtp_linear_tiles, self._limit("tiles_rows")
        self.linear_block = self._limit("linear_outputs"), self._limit("linear_inputs")
        """Outputs and inputs of the blocks in which oneDNN has to have laid out a weight."""

    def _limit(self, name: str) -> int:
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
