from __future__ import annotations

from pathlib import Path

import pytest

from tests.building.tiny import MODEL, write_files


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory that looks like a small model."""
    return write_files(tmp_path / "model", MODEL)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A file with a wheel's name: most tests need no more."""
    path = tmp_path / "lmtp_replicate-9.9.9-py3-none-any.whl"
    path.write_bytes(b"PK\x05\x06")
    return path
