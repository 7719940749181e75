from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.running import Running, running
from tests.gateway.toys import make_toy


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One gateway for all tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("work")
    make_toy(folder / "toy")
    with running([folder]) as gateway:
        yield gateway


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A work directory named `toy` that no other test knows."""
    return make_toy(tmp_path / "toy")
