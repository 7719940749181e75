"""The real command, on the shipped model: build, gateway, Cog runtime, unmodified LMQL."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

AWFUL = "Terrible. The room was dirty, the staff were rude and we will never come back."
MARK = "LMTP_REPLICATE_DEMO_TEST"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the command runs: empty at first, then with what earlier runs have built."""
    return tmp_path_factory.mktemp("demo")


def marked(mark: str) -> list[str]:
    """The command lines of all processes that inherited `mark` in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except (OSError, UnicodeDecodeError):
            continue  # it ended, or is somebody else's
    return found


@contextmanager
def demo(place: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The running command; whatever happens, no process of it may be left."""
    mark = uuid.uuid4().hex
    home = place / "home"
    home.mkdir(exist_ok=True)
    scripts = str(Path(sys.executable).parent)
    process = subprocess.Popen(
        [sys.executable, "-m", "lmtp_replicate", "demo", *arguments],
        cwd=place,
        env={
            **{name: value for name, value in os.environ.items() if "REPLICATE" not in name},
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(home),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            MARK: mark,
        },
        # A test run in the background of a shell ignores SIGINT, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
        assert marked(mark) == []
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def distribution(stdout: str) -> dict[str, float]:
    """Per cent of each option, from the bars."""
    found = re.findall(r"^ +(\w+) .* ([0-9.]+)%$", stdout, re.MULTILINE)
    return {option: float(percent) for option, percent in found}


def test_the_missions_query_is_answered(place: Path) -> None:
    with demo(place) as process:
        stdout, stderr = process.communicate(timeout=150)
        assert process.returncode == 0, stderr
    shares = distribution(stdout)
    assert list(shares) == ["positive", "negative", "neutral"]
    assert sum(shares.values()) == pytest.approx(100, abs=0.2)
    assert shares["positive"] > 90
    assert re.search(r"^Analysis: .*fabulous.*", stdout, re.MULTILINE)
    assert "Classification: positive" in stdout
    assert re.search(r"^Cost: [1-9]\d* predictions, [1-9]\d* tokens, ", stdout, re.MULTILINE)
    stages = re.findall(r"^(\w+) .*\.\.\. [0-9.]+ s$", stderr, re.MULTILINE)
    assert stages == ["building", "loading", "starting"]


def test_an_awful_review_is_negative(place: Path) -> None:
    with demo(place, "--review", AWFUL) as process:
        stdout, stderr = process.communicate(timeout=150)
        assert process.returncode == 0, stderr
    assert "Classification: negative" in stdout
    assert distribution(stdout)["negative"] > 90


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["term", "int"]
)
@pytest.mark.parametrize("moment", ["the Cog runtime starts", "the analysis is written"])
def test_a_signal_stops_everything(
    place: Path, number: signal.Signals, status: int, moment: str
) -> None:
    stream_name, text = {
        "the Cog runtime starts": ("stderr", "starting the Cog runtime"),
        "the analysis is written": ("stdout", "Analysis:"),
    }[moment]
    with demo(place) as process:
        stream = getattr(process, stream_name)
        seen = ""
        while text not in seen:
            piece = stream.read(1)
            assert piece, f"the command ended before it said {text!r}: {seen}"
            seen += piece
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == status, stderr
        assert "Classification" not in stdout
        assert "Traceback" not in stderr


def test_a_model_that_does_not_exist_is_named(place: Path) -> None:
    with demo(place, "no such model!") as process:
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "no such model!" in stderr
        assert "Traceback" not in stderr
        assert stdout == ""
