"""Memory that a step frees is there for the next one, and lasting objects are left alone."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_STEPS = """
import resource, threading, torch
from lmtp_replicate.engine.heap import keep_freed_memory

def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        tensors = [torch.ones(1 << 20) for _ in range(20)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def engine():
    faults(3)
    counted.append(faults(20))

counted = []
assert keep_freed_memory()
thread = threading.Thread(target=engine)
thread.start()
thread.join()
assert counted[0] < 1000, f"{counted[0]} faults in 20 steps of 80 MiB"
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="says so of glibc's malloc only")
def test_steps_take_no_page_faults_for_what_they_allocate_again() -> None:
    run(_STEPS)


_OBJECTS = """
import gc
from lmtp_replicate.engine.heap import keep_objects

loaded = [[] for _ in range(300_000)]
keep_objects()
visited = len(gc.get_objects())
assert visited < 10_000, f"the collector still visits {visited}"
"""


def test_the_collector_passes_over_what_has_been_loaded() -> None:
    run(_OBJECTS)


def run(program: str) -> None:
    """In a process of its own, whose memory it changes for good."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
