"""The memory behind the pages."""

from __future__ import annotations

import subprocess
import sys

import torch

from lmtp_replicate.engine.kv_store import KVStore
from lmtp_replicate.engine.pages import Clear, Copy
from lmtp_replicate.engine.spans import Spans


def store_with(tokens: int) -> tuple[KVStore, torch.Tensor]:
    """A store whose first `tokens` places hold 1, 2, 3 ..., and those keys `[1, 2, token, 3]`."""
    store = KVStore(Spans(total=4096, page_tokens=1))
    keys = torch.arange(1.0, tokens + 1).view(1, 1, -1, 1).expand(1, 2, -1, 3)
    store.extend(tokens)
    store.write(0, torch.arange(tokens), keys, -keys)
    return store, keys


def test_what_was_written_is_seen_span_by_span() -> None:
    store, keys = store_with(8)
    seen, values = store.view(0, first=2, batch=3, capacity=2, window=slice(1, 2))
    assert seen.shape == (3, 2, 1, 3)
    assert seen[:, 0, 0, 0].tolist() == [4.0, 6.0, 8.0]
    assert torch.equal(values, -seen)
    assert store.bytes_per_token == 2 * keys[:, :, 0].nbytes


def test_what_was_never_written_is_zero() -> None:
    store, _ = store_with(8)
    seen, _ = store.view(0, first=0, batch=1, capacity=4000, window=slice(0, 4000))
    assert seen[0, 1, :, 2].tolist() == [*range(1, 9), *[0.0] * 3992]


def test_memory_is_taken_as_far_as_it_is_written() -> None:
    """Not for the whole pool, and not by clearing or reading what nobody has written."""
    code = """
import resource, torch
from lmtp_replicate.engine.kv_store import KVStore
from lmtp_replicate.engine.pages import Clear
from lmtp_replicate.engine.spans import Spans
store = KVStore(Spans(total=1 << 16, page_tokens=16))  # 8 GiB of keys and values
keys = torch.ones(1, 8, 1000, 128)
store.extend(1000)
store.write(0, torch.arange(1000), keys, keys)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store.change([Clear(1000, 1_000_000)])
seen, values = store.view(0, 0, 1, 100_000, slice(0, 100_000))
assert seen.sum().item() == values.sum().item() == 8 * 1000 * 128
assert store.end == 1000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 50 * 1024  # KiB


def test_changes_happen_in_order_also_far_away_and_when_they_overlap() -> None:
    store, _ = store_with(8)
    store.change([Copy(0, 4000, 4), Clear(0, 2), Copy(2, 3, 5), Copy(4000, 4004, 4)])
    seen, _ = store.view(0, first=0, batch=1, capacity=4008, window=slice(0, 4008))
    row = seen[0, 0, :, 0].tolist()
    assert row[:9] == [0, 0, 3, 3, 4, 5, 6, 7, 0]
    assert row[4000:] == [1, 2, 3, 4, 1, 2, 3, 4]
