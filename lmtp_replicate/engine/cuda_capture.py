"""Recording work on a CUDA device; see
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs."""

from __future__ import annotations

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
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._first: torch.cuda.CUDAGraph | None = None

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        # Recording with too little memory, or what waits for the device, spoils the allocator (see
        # pytorch/pytorch#180395): a run before, on the same stream, fails harmlessly instead.
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
            with _no_waiting():
                work()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            work()
        # A pool whose graphs are all gone must not be used again.
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
