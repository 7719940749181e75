"""The threads of torch's operators: how many, and whose.

torch starts one per core of the machine. In a container with a CPU quota that is too many: they
wait for each other at the end of each operator while the quota holds one of them back, and a step
takes many times as long as with fewer.

Every thread of ours that calls torch gets workers of its own from libgomp, for as long as it lives.
As soon as these are more than there are cores, libgomp lets workers fall asleep at the end of each
operator instead of looking for the next one a moment longer (GOMP_SPINCOUNT in
https://gcc.gnu.org/onlinedocs/libgomp/Environment-Variables.html), and waking them takes longer
than a small operator: a decode step of 16 ms took 22. So the engine's thread must be the only one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import torch

from lmtp_replicate.engine.gpu import make_current

Result = TypeVar("Result")

_CPU = torch.device("cpu")
_CHOSEN_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_CGROUPS = Path("/sys/fs/cgroup")


def limit_threads(cgroups: Path = _CGROUPS) -> tuple[int, str]:
    """Have torch use no more threads than there are CPUs for this process, unless the user has
    chosen their number. Returns the number, and why that many."""
    for name in _CHOSEN_BY:
        if name in os.environ:
            return torch.get_num_threads(), f"as {name} says"
    before, cpus, quota = torch.get_num_threads(), len(os.sched_getaffinity(0)), _quota(cgroups)
    # With a quota of 1.5, a second thread would be held back half of the time, and the first wait.
    limit = cpus if quota is None else min(cpus, max(1, int(quota)))
    if limit >= before:
        return before, "as torch chose"
    torch.set_num_threads(limit)
    return limit, f"{cpus} CPUs" if quota is None else f"{cpus} CPUs, a quota of {quota:g}"


def begin_thread(device: torch.device) -> None:
    """What a new thread that runs a model on `device` does first."""
    # It forgets the limit for what MKL and oneDNN do, until it is set in it again.
    torch.set_num_threads(torch.get_num_threads())
    make_current(device)


def in_passing_thread(function: Callable[[], Result], device: torch.device = _CPU) -> Result:
    """What `function`, which runs on `device`, returns or raises, called in a thread that ends
    together with the workers that torch's operators got in it."""
    outcome: Future[Result] = Future()

    def call() -> None:
        try:
            begin_thread(device)
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=call, name="engine-start")
    thread.start()
    thread.join()
    return outcome.result()


def _quota(cgroups: Path) -> float | None:
    """The CPUs that the control group at `cgroups` may use; a container sees its own there. See
    cpu.max in https://docs.kernel.org/admin-guide/cgroup-v2.html, and for version 1
    https://docs.kernel.org/scheduler/sched-bwc.html."""
    try:
        quota, period = (cgroups / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroups / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroups / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    unlimited = quota in ("max", "-1")
    return None if unlimited else int(quota) / int(period)
