"""Recording work on a CUDA device; see
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn

from lmtp_replicate.engine.decode_graphs import Capture


class CudaCapture:
    """Records into CUDA graphs that share one pool of memory: they never run side by side."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._first: torch.cuda.CUDAGraph | None = None

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        # Recording with too little memory, or what waits for the device, spoils the allocator (see
        # pytorch/pytorch#180395): a run before, on the same stream, fails harmlessly instead.
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                work()
                with _no_waiting():
                    work()
        finally:
            current.wait_stream(self._stream)  # for what was asked of it before a failure, too
        # A pool whose graphs are all gone, as after a first capture that failed, must not be used
        # again.
        pool = torch.cuda.graph_pool_handle() if self._first is None else self._first.pool()
        graph = torch.cuda.CUDAGraph()
        with _no_collecting():
            try:
                with torch.cuda.graph(
                    graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    work()
            finally:
                # torch.cuda.graph leaves the thread on its own stream if the capture's end fails.
                torch.cuda.set_stream(current)
        self._first = self._first or graph
        return graph.replay


def capture_for(model: nn.Module) -> tuple[Capture | None, str]:
    """What records the steps of `model`; or None, and why."""
    devices = {tensor.device for tensor in chain(model.parameters(), model.buffers())}
    if len(devices) != 1:
        return None, "the model is on several devices"
    (device,) = devices
    if device.type != "cuda":
        return None, "the model is not on a CUDA device"
    return CudaCapture(device), ""


@contextmanager
def _no_waiting() -> Iterator[None]:
    """What makes the host wait for the device raises."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def _no_collecting() -> Iterator[None]:
    """What is garbage stays: to destroy an old graph is an error while another is recorded."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
