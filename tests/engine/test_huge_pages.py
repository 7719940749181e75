"""Huge pages: what is said to lie on them does, and nothing changes for it."""

from __future__ import annotations

import ctypes
import mmap
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lmtp_replicate.engine.huge_pages import HUGE, joined, mostly_covered, move, move_weights
from lmtp_replicate.engine.packed_linears import pack_linears
from tests.engine.running import running
from tests.engine.tiny_models import tiny_loaded

MIB = 1 << 20


@cache
def are_given() -> bool:
    """Whether this system moves memory to huge pages when asked."""
    memory = mmap.mmap(-1, 3 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(bytes([1]) * (3 * HUGE))
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return move(-(-start // HUGE) * HUGE) and huge_bytes() >= HUGE


def huge_bytes() -> int:
    """On huge pages in this process."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return int(re.findall(r"AnonHugePages: +(\d+) kB", rollup)[0]) * 1024


@pytest.fixture(params=[False, True])
def network(request: pytest.FixtureRequest) -> Any:
    """48 MiB of weights, half of them packed, or 42 where those are in whole numbers."""
    torch.manual_seed(0)
    packed = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(6)))
    network = nn.ModuleDict({"packed": packed, "plain": nn.Embedding(6 * 1024, 1024)})
    with torch.inference_mode():
        assert pack_linears(packed, "all", compile_kernels=request.param).state != "plain"
    return network


def test_weights_are_moved_and_stay_the_same(network: Any) -> None:
    x = torch.randn(1, 5, 1024)
    with torch.inference_mode():
        expected = network["packed"](x), network["plain"].weight.clone()
        moved = move_weights(network)
        assert torch.equal(network["packed"](x), expected[0])
    assert torch.equal(network["plain"].weight, expected[1])
    if are_given():
        assert 28 * MIB < moved <= min(48 * MIB, huge_bytes())
    else:
        assert moved == 0


def test_what_is_a_files_stays_the_files(tmp_path: Path) -> None:
    """As weights mapped from a checkpoint may be."""
    file = tmp_path / "weights"
    written = torch.arange(2 * MIB, dtype=torch.float32)
    file.write_bytes(written.numpy().tobytes())
    weight = torch.from_file(str(file), shared=True, size=2 * MIB)
    move_weights(nn.ParameterList([nn.Parameter(weight, requires_grad=False)]))
    assert torch.equal(weight, written)
    weight[:] = 7.0
    assert file.read_bytes() == weight.numpy().tobytes()


def test_near_neighbours_are_one_span() -> None:
    spans = [(900_000, 950_000), (0, 100_000), (110_000, 800_000), (120_000, 130_000)]
    assert list(joined(spans)) == [(0, 800_000), (900_000, 950_000)]
    assert list(joined([])) == []


def test_pages_that_are_mostly_something_elses_are_left() -> None:
    spans = [(HUGE // 2, 3 * HUGE - 1), (5 * HUGE + 1, 5 * HUGE + 1000), (7 * HUGE, 8 * HUGE)]
    half = HUGE // 2
    pages = [(0, half), (HUGE, HUGE), (2 * HUGE, HUGE - 1), (7 * HUGE, HUGE)]
    assert list(mostly_covered(spans)) == pages


def test_a_model_of_small_weights_has_none() -> None:
    with running(tiny_loaded("llama")) as engine:
        assert engine.info().details["huge_page_bytes"] == 0


def test_weights_that_lie_nowhere_stop_nothing() -> None:
    with torch.device("meta"):
        assert move_weights(nn.Linear(2048, 2048)) == 0
