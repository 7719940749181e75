"""What a capture leaves behind, with a stand-in for `torch.cuda` that only keeps the books."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lmtp_replicate.engine import cuda_capture
from lmtp_replicate.engine.cuda_capture import CudaCapture


class Cuda:
    """As torch 2.13: whoever fails within `graph` finds himself on its stream afterwards."""

    def __init__(self) -> None:
        self.current: Any = SimpleNamespace(wait_stream=lambda _: None)
        self.pools: list[object] = []
        self._handles = count()

    def graph_pool_handle(self) -> object:
        return next(self._handles)

    def Stream(self, _device: torch.device) -> Any:  # noqa: N802
        return SimpleNamespace(wait_stream=lambda _: None)

    def CUDAGraph(self) -> Any:  # noqa: N802
        return SimpleNamespace(replay=lambda: None)

    def current_stream(self, _device: torch.device) -> Any:
        return self.current

    def set_stream(self, stream: Any) -> None:
        self.current = stream

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: Any, pool: object, stream: Any, **_: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        self.pools.append(pool)
        graph.pool = lambda: pool
        yield
        self.current = before

    def get_sync_debug_mode(self) -> int:
        return 0

    def set_sync_debug_mode(self, mode: object) -> None:
        pass


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    cuda = Cuda()
    monkeypatch.setattr(cuda_capture, "torch", SimpleNamespace(cuda=cuda))
    return cuda


class Work:
    """Runs twice before it is captured; in the capture it may fail."""

    def __init__(self, *, fails: bool) -> None:
        self._fails = fails
        self.collected: list[bool] = []

    def __call__(self) -> None:
        self.collected.append(gc.isenabled())
        if self._fails and len(self.collected) == 3:
            raise RuntimeError("capture failed")


def test_a_capture_that_fails_leaves_the_thread_on_its_stream(cuda: Cuda) -> None:
    before = cuda.current
    with pytest.raises(RuntimeError, match="capture failed"):
        CudaCapture(torch.device("cuda:0"))(Work(fails=True))
    assert cuda.current is before
    assert gc.isenabled()


def test_the_pool_of_a_capture_that_failed_is_not_used_again(cuda: Cuda) -> None:
    capture = CudaCapture(torch.device("cuda:0"))
    for fails in (True, False, False, True, False):
        try:
            capture(Work(fails=fails))
        except RuntimeError:
            assert fails
    first, *others = cuda.pools
    assert len(set(others)) == 1, "one with a graph that lives is everybody's"
    assert first not in others


@pytest.mark.usefixtures("cuda")
def test_nothing_is_collected_within_a_capture() -> None:
    work = Work(fails=False)
    CudaCapture(torch.device("cuda:0"))(work)
    assert work.collected == [True, True, False]
    assert gc.isenabled()
    gc.disable()
    try:
        CudaCapture(torch.device("cuda:0"))(Work(fails=False))
        assert not gc.isenabled(), "nor switched on where it was off"
    finally:
        gc.enable()
