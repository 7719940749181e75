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


@cache
def kernels(dtype: torch.dtype) -> tuple[ctypes.CDLL | None, str]:
    """The compiled library for a model in `dtype`, or None; and why."""
    if dtype not in DTYPES:
        return None, "only for float32 and bfloat16"
    try:
        return compile_library(FOLDER, _DEFINITIONS[dtype]), "compiled for this CPU"
    except CompilationError as error:
        return None, str(error)
