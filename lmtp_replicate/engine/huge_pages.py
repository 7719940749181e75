"""Weights in memory pages of 2 MiB instead of 4 KiB, on Linux.

A step reads all weights. The CPU keeps the places of a few thousand pages at hand (its TLB), asks
memory for those of all others, on a virtual machine by two walks, and does not prefetch across a
page's end: on one such machine 2 cores read 26 GB/s from small pages and 43 from huge ones. By
default the system gives huge ones only to whom asks for them
(https://docs.kernel.org/admin-guide/mm/transhuge.html). Keys and values stay on small ones: they
take more memory on huge ones, 1.4 instead of 1.2 times their size at 32 streams, a prompt takes
longer for its first use of one, and attention is no faster for it.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from lmtp_replicate.engine.packed_linear import PackedLinear

logger = logging.getLogger(__name__)

HUGE: Final = 2 << 20
_SIZE: Final = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_NEAR: Final = 64 << 10
"""What may lie between two weights of one span."""
_COLLAPSE: Final = 25
"""MADV_COLLAPSE of Linux 6.1 and later: now, and not when the system gets round to it."""

Span = tuple[int, int]
"""Where it starts and ends: addresses."""


def move_weights(model: nn.Module) -> int:
    """Move the weights of `model` that are on a CPU to huge pages; their addresses stay. Returns
    how many bytes of them are there now."""
    try:
        if int(_SIZE.read_text()) != HUGE:
            return 0
        spans = list(joined(_weights(model)))
    except Exception as error:  # no such pages; or weights of a kind that lies nowhere
        logger.debug("No weights on huge pages: %s", error)
        return 0
    moved = sum(covered for page, covered in mostly_covered(spans) if move(page))
    logger.info("%d MiB of weights are on huge pages.", moved >> 20)
    return moved


def _weights(model: nn.Module) -> Iterator[Span]:
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.layout == torch.strided:
            yield parameter.data_ptr(), parameter.data_ptr() + parameter.nbytes
    for module in model.modules():
        if isinstance(module, PackedLinear):
            yield module.memory


def joined(spans: Iterable[Span]) -> Iterator[Span]:
    """Near neighbours as one span, with what lies between them."""
    open_span: Span | None = None
    for start, end in sorted(spans):
        if open_span is not None and start - open_span[1] <= _NEAR:
            open_span = open_span[0], max(open_span[1], end)
            continue
        if open_span is not None:
            yield open_span
        open_span = start, end
    if open_span is not None:
        yield open_span


def mostly_covered(spans: Iterable[Span]) -> Iterator[tuple[int, int]]:
    """Addresses of the huge pages of which a span takes half or more, and what it takes."""
    for start, end in spans:
        for page in range(start // HUGE * HUGE, end, HUGE):
            covered = min(end, page + HUGE) - max(start, page)
            if 2 * covered >= HUGE:
                yield page, covered


def move(page: int) -> bool:
    """Have 2 MiB of memory from address `page` on moved to a huge page; whether the system did.
    It does not move what is a file's, for instance."""
    madvise = _madvise()
    madvise(page, HUGE, mmap.MADV_HUGEPAGE)
    return bool(madvise(page, HUGE, _COLLAPSE) == 0)


@cache
def _madvise() -> Any:
    """The C library's (https://man7.org/linux/man-pages/man2/madvise.2.html)."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return madvise
