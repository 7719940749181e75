"""A Replicate double and an environment that points to it; no hub outlives its test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lmtp_replicate.client.hub import close_process_hub
from tests.client.replicate_double import TOKEN, ReplicateDouble
from tests.scripted_engine import ScriptedEngine


@pytest.fixture(autouse=True)
def _own_hub() -> Iterator[None]:
    yield
    close_process_hub()


@pytest.fixture
def replicate(monkeypatch: pytest.MonkeyPatch) -> Iterator[ReplicateDouble]:
    with ReplicateDouble(ScriptedEngine()).running() as double:
        monkeypatch.setenv("REPLICATE_BASE_URL", double.url)
        monkeypatch.setenv("REPLICATE_API_TOKEN", TOKEN)
        yield double
        close_process_hub()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits for the server's last word however long that takes."""
    monkeypatch.setattr("lmtp_replicate.client.prediction.LAST_WORDS", 20.0)
