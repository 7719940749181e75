"""No more threads than the container's CPUs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lmtp_replicate.engine.proof import prove
from lmtp_replicate.engine.threads import in_passing_thread, limit_threads
from tests.engine.running import running
from tests.engine.tiny_models import tiny_loaded


@pytest.fixture(autouse=True)
def _four_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("quota", "threads"),
    [("max 100000", 4), ("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1)],
)
def test_the_quota_of_the_control_group(tmp_path: Path, quota: str, threads: int) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert limit_threads(tmp_path)[0] == torch.get_num_threads() == threads


@pytest.mark.parametrize(("quota", "threads"), [("-1", 4), ("300000", 3)])
def test_the_quota_of_an_old_control_group(tmp_path: Path, quota: str, threads: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
    assert limit_threads(tmp_path)[0] == torch.get_num_threads() == threads


def test_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 3})
    assert limit_threads(tmp_path) == (2, "2 CPUs")


def test_fewer_threads_than_cpus_are_left_alone(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    assert limit_threads(tmp_path) == (2, "as torch chose")


def test_what_the_user_chose_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    (tmp_path / "cpu.max").write_text("100000 100000")
    assert limit_threads(tmp_path) == (4, "as OMP_NUM_THREADS says")


def test_the_engine_says_how_many_and_why() -> None:
    torch.set_num_threads(1)
    with running(tiny_loaded("llama")) as engine:
        details = engine.info().details
    assert (details["threads"], details["threads_reason"]) == (1, "as torch chose")


def test_the_limit_holds_in_the_engines_thread() -> None:
    """What MKL does in a new thread would use every core."""
    code = """
import os
import torch
from lmtp_replicate.protocol.messages import Generate
from tests.engine.running import answers, running
from tests.engine.tiny_models import tiny_loaded, tiny_network
network = tiny_network("llama")
torch.set_num_threads(1)
tasks = lambda: set(os.listdir("/proc/self/task"))
born = []
def probe(*_):
    before = tasks()
    torch.mm(matrix, matrix)
    born.append(tasks() - before)
matrix = torch.ones(600, 600)
with running(tiny_loaded("llama", network)) as engine:
    network.register_forward_pre_hook(probe)
    answers(engine, [Generate(0, (1, 2), 1)])
print(len(born), set().union(*born))
"""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1 set()\n"


_WORKERS = """
import os, time, torch
from lmtp_replicate.engine.threads import in_passing_thread

def tasks():
    return len(os.listdir("/proc/self/task"))

def work():
    torch.ones(1 << 22).sum()
    return tasks()

torch.set_num_threads(3)
before = tasks()
assert in_passing_thread(work) == before + 3, "the thread and its two workers"
deadline = time.monotonic() + 30
while tasks() > before and time.monotonic() < deadline:
    time.sleep(0.01)
assert tasks() == before, "its workers are still there"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads in /proc")
def test_the_workers_of_a_passing_thread_end_with_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WORKERS], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_passing_threads_error_is_the_callers() -> None:
    def fail() -> None:
        raise ValueError("so")

    with pytest.raises(ValueError, match="so"):
        in_passing_thread(fail)


def test_the_proof_leaves_no_workers_beside_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def prove_here(*args: Any) -> Any:
        threads.append(threading.current_thread())
        return prove(*args)

    monkeypatch.setattr("lmtp_replicate.engine.torch_engine.prove", prove_here)
    with running(tiny_loaded("llama")):
        assert len(threads) == 1
        assert not threads[0].is_alive()
