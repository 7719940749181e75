"""Kernels of our own in C, for float32 on a CPU: see the sources beside this file.

They are one library, compiled at the first use.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

from lmtp_replicate.engine.compiler import CompilationError, compile_library

FOLDER = Path(__file__).parent


@cache
def kernels() -> tuple[ctypes.CDLL | None, str]:
    """The compiled library, or None; and why."""
    try:
        return compile_library(FOLDER), "compiled for this CPU"
    except CompilationError as error:
        return None, str(error)
