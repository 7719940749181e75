"""`lmtp-replicate gateway` and `lmtp-replicate predict` as a user runs them."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from lmtp_replicate.errors import ConfigError
from lmtp_replicate.gateway.input_schema import InputSchema
from tests.gateway.toys import TEXT, make_toy, openapi

PROGRAM = [sys.executable, "-m", "lmtp_replicate"]


@contextmanager
def command(*arguments: str, temporary: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.communicate(timeout=30)


def is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):  # it may go between the two questions
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def gone(processes: list[psutil.Process]) -> bool:
    """Wait for the end of processes that nobody may reap."""
    alive = list(processes)
    while alive:
        alive = [process for process in alive if is_alive(process)]
    return True


def predict(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, "predict", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@contextmanager
def serving(toy: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """`lmtp-replicate gateway` after one prediction, and the processes that it has started."""
    arguments = ("gateway", str(toy), "--port", "0", "--owner", "me")
    with command(*arguments, temporary=toy.parent) as process:
        assert process.stderr is not None
        said = {}
        for line in process.stderr:
            name, _, value = line.strip().partition("=")
            said[name] = value
            if name == "export REPLICATE_API_TOKEN":
                break
        assert "replicate:me/toy" in said
        answer = httpx.post(
            said["export REPLICATE_BASE_URL"] + "/v1/deployments/me/toy/predictions",
            json={"input": {"text": "a"}},
            headers={
                "Authorization": f"Bearer {said['export REPLICATE_API_TOKEN']}",
                "Prefer": "wait",
            },
            timeout=30,
        )
        assert answer.json()["status"] == "succeeded"
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) == 2
        yield process, started


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_gateway_serves_and_leaves_nothing_behind(toy: Path, number: signal.Signals) -> None:
    with serving(toy) as (process, started):
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 0, stderr
        assert "Traceback" not in stderr
        assert psutil.wait_procs(started, timeout=10)[1] == []


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a child of its parent's death"
)
def test_a_killed_gateway_takes_its_runtimes_with_it(toy: Path) -> None:
    """On Linux, which tells a child of its parent's death."""
    with serving(toy) as (process, started):
        process.kill()
        assert gone(started)


def test_gateway_without_work_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "gateway", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.endswith("make one with `lmtp-replicate build`\n")


def test_predict_streams_to_stdout(toy: Path, tmp_path: Path) -> None:
    """The second chunk is made only after we have read the first."""
    gate = tmp_path / "gate"
    arguments = ("predict", str(toy), "-i", "text=ab", "-i", f"gate={gate}")
    with command(*arguments, temporary=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == "ab"
        gate.touch()
        assert process.communicate(timeout=30)[0] == "abab"
        assert process.returncode == 0


def test_predict_converts_by_the_schema(toy: Path, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("é=\n")
    inputs = [f"text=@{file}", "count=2", "seconds=0", "style=number"]
    done = predict(str(toy), *(part for pair in inputs for part in ("-i", pair)))
    assert (done.returncode, done.stdout) == (0, "é=\n0é=\n1")
    assert "warming up" in done.stderr


def test_predict_reports_a_failure(toy: Path) -> None:
    done = predict(str(toy), "-i", "text=a", "-i", "fail_at=1")
    assert (done.returncode, done.stdout) == (1, "a")
    assert "the toy broke" in done.stderr.splitlines()[-1]


def test_predict_reports_setup_that_fails(tmp_path: Path) -> None:
    source = TEXT.replace('print("warming up")', 'raise RuntimeError("no such weights")')
    done = predict(str(make_toy(tmp_path / "toy", source)), "-i", "text=a")
    assert done.returncode == 1
    assert "no such weights" in done.stderr.split("lmtp-replicate: ")[-1]


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        (["txt=a"], "-i txt: the model has no such input; it has: count, "),
        (["text"], "must be NAME=VALUE"),
        (["text=a", "text=b"], "given twice"),
        (["text=@/no/such/file"], "-i text=@/no/such/file: No such file"),
        (["text=a", "count=x"], "-i count=x: not a value of type integer"),
        (["count=1"], "text is required"),
    ],
)
def test_predict_refuses_bad_inputs(toy: Path, inputs: list[str], complaint: str) -> None:
    done = predict(str(toy), *(part for pair in inputs for part in ("-i", pair)))
    assert (done.returncode, done.stdout) == (1, "")
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_predict_stops_its_runtime_when_terminated(toy: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    arguments = ("predict", str(toy), "-i", "text=ab", "-i", f"gate={gate}")
    with command(*arguments, temporary=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == "ab"
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
        assert psutil.wait_procs(started, timeout=10)[1] == []
        assert process.stderr is not None
        said = process.stderr.read()
        assert not any(word in said for word in ("ERROR", "WARNING", "Traceback")), said


def test_conversion_of_every_type(tmp_path: Path) -> None:
    kinds = {"b": "boolean", "n": "number", "a": "array", "o": "object"}
    fields = {name: {"type": kind} for name, kind in kinds.items()}
    schema = InputSchema(openapi(fields | {"f": {"type": "string", "format": "uri"}}, []))
    image = tmp_path / "a.png"
    image.write_bytes(b"\x89\xff")
    assert schema.convert("b", "True") is True
    assert schema.convert("n", "1e-3") == 0.001
    assert schema.convert("a", "[1]") == [1]
    assert schema.convert("o", '{"a": 1}') == {"a": 1}
    data = base64.b64encode(b"\x89\xff").decode()
    assert schema.convert("f", f"@{image}") == f"data:image/png;base64,{data}"
    assert schema.convert("f", "https://x") == "https://x"
    with pytest.raises(ConfigError, match="not UTF-8"):
        schema.convert("o", f"@{image}")
    with pytest.raises(ConfigError, match="not a value of type boolean"):
        schema.convert("b", "yes")


def test_null_is_accepted_where_the_schema_says_so() -> None:
    schema = InputSchema(openapi({"seed": {"type": "integer", "nullable": True}}, []))
    assert schema.invalid_fields({"seed": None}) == []
    assert schema.invalid_fields({"seed": "a"}) != []
