"""Huge pages: what is said to lie on them does, and nothing changes for it."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from lmtp_replicate.engine.huge_pages import move_weights, prefer_huge_pages
from lmtp_replicate.engine.packed_linears import pack_linears
from tests.engine.running import running
from tests.engine.tiny_models import tiny_loaded

MIB = 1 << 20
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def are_given() -> bool:
    """Whether this system gives huge pages to whom asks."""
    return SETTING.exists() and "[never]" not in SETTING.read_text()


def huge_bytes() -> int:
    """On huge pages in this process."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return int(re.findall(r"AnonHugePages: +(\d+) kB", rollup)[0]) * 1024


@pytest.fixture
def network() -> nn.Module:
    """48 MiB of weights, half of them packed."""
    torch.manual_seed(0)
    packed = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(6)))
    network = nn.ModuleDict({"packed": packed, "plain": nn.Embedding(6 * 1024, 1024)})
    with torch.inference_mode():
        assert pack_linears(packed, "all").state == "onednn-packed"
    return network


def test_weights_are_moved_and_stay_the_same(network: nn.Module) -> None:
    x = torch.randn(1, 5, 1024)
    with torch.inference_mode():
        expected = network["packed"](x), network["plain"].weight.clone()
        moved = move_weights(network)
        assert torch.equal(network["packed"](x), expected[0])
    assert torch.equal(network["plain"].weight, expected[1])
    assert huge_bytes() >= moved
    if are_given():
        assert moved > 32 * MIB


def test_what_is_not_in_memory_of_ones_own_is_left(tmp_path: Path) -> None:
    """As weights mapped from a checkpoint's file may be."""
    file = tmp_path / "weights"
    file.write_bytes(bytes(8 * MIB))
    weight = torch.from_file(str(file), shared=True, size=2 * MIB)
    holder = nn.ParameterList([nn.Parameter(weight, requires_grad=False)])
    before = huge_bytes()
    move_weights(holder)
    assert huge_bytes() == before
    assert not weight.any()


def test_a_model_of_small_weights_has_none() -> None:
    with running(tiny_loaded("llama")) as engine:
        assert engine.info().details["huge_page_bytes"] == 0


@pytest.mark.skipif(not are_given(), reason="this system gives no huge pages")
def test_memory_that_prefers_them_gets_them() -> None:
    memory = mmap.mmap(-1, 32 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    prefer_huge_pages(memory)
    before = huge_bytes()
    memory.write(bytes([1]) * (32 * MIB))
    assert huge_bytes() - before > 24 * MIB
    memory.close()
