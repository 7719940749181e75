"""`scripts/setup` on machines that lack something: it says what to do and leaves nothing behind."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
HASHED = ("pyproject.toml", "lmtp_replicate/building/pins.txt")
"""What the set-up's stamp stands for."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "project" / "scripts").mkdir(parents=True)
    shutil.copy(PROJECT / "scripts" / "setup", tmp_path / "project" / "scripts" / "setup")
    for name in HASHED:
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, tmp_path / "project" / name)
    return tmp_path / "project"


def run_setup(checkout: Path, **programs: str) -> subprocess.CompletedProcess[str]:
    """Run the script with only `programs` (name: shell body) and the base tools on PATH."""
    tools = checkout.parent / "bin"
    tools.mkdir()
    for tool in ("sh", "dirname", "rm", "mv"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    for name, body in programs.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    return subprocess.run(
        [checkout / "scripts" / "setup"],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def entries(checkout: Path) -> set[str]:
    return {path.name for path in checkout.iterdir()}


def test_no_python_that_runs(checkout: Path) -> None:
    before = entries(checkout)
    done = run_setup(checkout, python3="echo 'shim: not installed' >&2; exit 127")
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed" in done.stderr
    assert entries(checkout) == before


def test_python_without_venv(checkout: Path) -> None:
    before = entries(checkout)
    body = f'case "$*" in *ensurepip*) exit 1;; esac; exec "{sys.executable}" "$@"'
    done = run_setup(checkout, python3=body)
    assert done.returncode == 1
    assert "apt install python3-venv" in done.stderr
    assert entries(checkout) == before


def test_the_first_python_that_runs_is_taken(checkout: Path) -> None:
    """Shims that fail are passed over; here the survivor fails at making the environment."""
    body = f'case "$*" in "-m venv"*) exit 3;; esac; exec "{sys.executable}" "$@"'
    done = run_setup(checkout, python3="exit 127", **{"python3.12": body})
    assert done.returncode == 1
    assert "making .venv failed" in done.stderr
    assert ".venv" not in entries(checkout)


def test_a_second_call_is_a_no_op(checkout: Path) -> None:
    """With a stamp of this pyproject.toml nothing is installed; no pip, no network."""
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    content = b"".join((checkout / name).read_bytes() for name in HASHED)
    stamp = hashlib.sha256(content).hexdigest()[:16]
    (checkout / ".venv" / f".installed-{stamp}").touch()
    done = run_setup(checkout)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
