"""The queries of `benchmarks.queries` on the rote model, behind a real gateway and Cog runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.machine import ROOT
from benchmarks.rote.work import make_work_directory
from benchmarks.traffic import DELAYS
from lmtp_replicate.client.hub import close_process_hub
from tests.gateway_thread import GatewayThread

SLOW_STEP = 0.05
"""Seconds of a step of the model `slow`; the model `rote` is as fast as it can be, and `published`
as slow as in the published comparison."""


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the models' work directories."""
    folder = tmp_path_factory.mktemp("work")
    make_work_directory(folder / "rote")
    make_work_directory(folder / "slow", step_seconds=SLOW_STEP)
    make_work_directory(folder / "published", step_seconds=DELAYS.token)
    return folder


@pytest.fixture(scope="session")
def gateway_thread(work: Path) -> Iterator[GatewayThread]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        with GatewayThread(work) as running:
            yield running
        close_process_hub()


@pytest.fixture
def gateway(
    gateway_thread: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> Iterator[GatewayThread]:
    """For clients that know nothing yet."""
    close_process_hub()
    gateway_thread.lead_here(monkeypatch)
    yield gateway_thread
    gateway_thread.wait_until_quiet()
