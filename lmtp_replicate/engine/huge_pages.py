"""Memory in pages of 2 MiB instead of 4 KiB, on Linux.

A step reads all weights, keys and values. The CPU keeps the places of a few thousand pages at hand
(its TLB), asks memory for those of all others, on a virtual machine by two walks, and does not
prefetch across a page's end: on one such machine 2 cores read 26 GB/s from small pages and 43
from huge ones. By default the system gives huge ones only to whom asks for them
(https://docs.kernel.org/admin-guide/mm/transhuge.html).
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

import torch
from torch import nn

from lmtp_replicate.engine.packed_linears import PackedLinear

logger = logging.getLogger(__name__)

_HUGE: Final = 2 << 20
_COLLAPSE: Final = 25
"""MADV_COLLAPSE of Linux 6.1 and later: now, and not when the system gets round to it."""

Span = tuple[int, int]
"""Address and length in bytes."""


def prefer_huge_pages(memory: mmap.mmap) -> None:
    """Have the system back `memory`, not yet written, by huge pages where it can."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system built without them
            memory.madvise(mmap.MADV_HUGEPAGE)


def move_weights(model: nn.Module) -> int:
    """Move the weights of `model` that are on a CPU to huge pages, where they are: their addresses
    stay. Returns how many bytes of memory, of which they have most, are on such pages now."""
    if not sys.platform.startswith("linux"):
        return 0
    moved = sum(map(_move, _pages(_joined(_weights(model))))) * _HUGE
    logger.info("%d MiB of weights are on huge pages.", moved >> 20)
    return moved


def _weights(model: nn.Module) -> Iterator[Span]:
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.layout == torch.strided:
            yield parameter.data_ptr(), parameter.nbytes
    for module in model.modules():
        if isinstance(module, PackedLinear):
            weight = module.weight
            yield torch.ops.mkldnn.data_ptr(weight), torch.ops.mkldnn._nbytes(weight)


def _joined(spans: Iterable[Span]) -> Iterator[Span]:
    """Neighbours as one span, what is between them included if that is less than a page."""
    start = end = 0
    for address, length in sorted(spans):
        if address - end < _HUGE and end:
            end = max(end, address + length)
            continue
        yield start, end - start
        start, end = address, address + length
    yield start, end - start


def _pages(spans: Iterable[Span]) -> Iterator[int]:
    """The addresses of all huge pages within the spans."""
    for address, length in spans:
        first = -(-address // _HUGE) * _HUGE
        yield from range(first, (address + length) // _HUGE * _HUGE, _HUGE)


def _move(page: int) -> bool:
    """One by one: memory that cannot be moved, such as a file's, is not to stop the rest."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    madvise(page, _HUGE, mmap.MADV_HUGEPAGE)
    return bool(madvise(page, _HUGE, _COLLAPSE) == 0)
