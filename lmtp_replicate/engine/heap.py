"""How the process that runs an engine treats its memory.

A step allocates and frees the same megabytes again and again. By default glibc's malloc hands such
blocks back to the system, which then takes a page fault for each 4 KiB of them in the next step: a
fifth of the time of a prefill of 512 tokens on the benchmark model.

And by default Python's garbage collector visits now and then all objects that there are: torch's,
transformers' and a model's are 380 000, for which it stops every stream for 0.2 s.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import platform
from typing import Final

logger = logging.getLogger(__name__)

# https://man7.org/linux/man-pages/man3/mallopt.3.html; the numbers are from glibc's malloc.h.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8
_LARGEST_BLOCK: Final = 32 << 20
"""glibc's upper limit for blocks that are not mapped one by one."""
_KEPT_BYTES: Final = 512 << 20
"""Freed memory at the top of the heap beyond which it is given back after all."""


def keep_freed_memory() -> bool:
    """Have malloc keep what a step frees for the next one; whether it does. For this process and
    the threads that it starts from now on. A user's own choice in the environment
    (MALLOC_TRIM_THRESHOLD_ and the like) is lost."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = all(
        mallopt(option, value) == 1
        for option, value in (
            # A thread's own arena is made of heaps of 64 MiB, each given back as soon as empty.
            (_ARENA_MAX, 1),
            (_MMAP_THRESHOLD, _LARGEST_BLOCK),
            (_TRIM_THRESHOLD, _KEPT_BYTES),
        )
    )
    if not done:
        logger.info("malloc gives freed memory back at once; prefill takes longer for it.")
    return done


def keep_objects() -> None:
    """Have the garbage collector visit only what is made from now on (`gc.unfreeze()` takes it
    back). For a process that needs what it has loaded until its end."""
    gc.collect()
    gc.freeze()
