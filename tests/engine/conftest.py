"""Tiny models: one thread computes them fastest, and leaves the other core to other tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lmtp_replicate.engine.compiler import CompilationError, find_compiler
from lmtp_replicate.engine.kernels import kernels


@pytest.fixture(scope="session")
def has_compiler() -> None:
    """For tests of compiled code: it is no requirement of the product, nor of its other tests."""
    try:
        find_compiler()
    except CompilationError as error:
        pytest.skip(str(error))


@pytest.fixture
def with_onednn_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU without kernels for layouts of our own."""
    for dtype in (torch.float32, torch.bfloat16):
        compiled, _ = kernels(dtype)
        if compiled is not None:
            for kind in ("digits", "bytes", "bfloat16", "float16"):
                monkeypatch.setattr(compiled, f"linear_{kind}", None)


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
