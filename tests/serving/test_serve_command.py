"""`lmtp-replicate serve` as a process, with a real model."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from lmtp_replicate.cli import main
from lmtp_replicate.serving import websocket_server
from tests.upstream import run_upstream

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
QUERY = """
argmax
    "Hello[X]"
from lmql.model("tiny", endpoint="127.0.0.1:PORT", tokenizer="TOKENIZER")
where len(TOKENS(X)) < 8
"""


@contextmanager
def serving(
    *arguments: str, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], int, list[str]]]:
    """The process, its port, and what it said until it listened."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lmtp_replicate", "serve", *arguments, "--port", "0"],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    said: list[str] = []
    try:
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"listening on ws://127.0.0.1:(\d+)", line):
                said.append(process.stderr.readline())
                yield process, int(found[1]), said
                return
        raise AssertionError("".join(said))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
        process.stderr.close()


def test_lmql_runs_on_it_and_sigterm_stops_it_cleanly(tiny_llama: Path) -> None:
    with serving(str(tiny_llama), "--host", "127.0.0.1", "--dtype", "float32") as (
        process,
        port,
        said,
    ):
        assert f'endpoint="127.0.0.1:{port}"' in said[-1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as health:
            assert json.load(health) == {"status": "ok"}
        query = QUERY.replace("PORT", str(port)).replace("TOKENIZER", str(tiny_llama))
        done = run_upstream(query)
        assert json.loads(done.stdout.strip().splitlines()[-1])["X"], done.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


async def test_its_options_reach_the_model_and_the_server(tiny_llama: Path) -> None:
    options = ("--host", "127.0.0.1", "--device", "cpu", "--quantize", "8bit", "--decode-graphs")
    token = {"LMTP_REPLICATE_TOKEN": "s3cret"}
    with serving(str(tiny_llama), *options, environment=token) as (_, port, said):
        async with aiohttp.ClientSession() as http:
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await http.ws_connect(f"http://127.0.0.1:{port}")
            right = {"Authorization": "Bearer s3cret"}
            async with http.ws_connect(f"http://127.0.0.1:{port}", headers=right) as socket:
                await socket.send_str('MODEL_INFO {"stream_id": 1}')
                kind, _, body = (await socket.receive_str(timeout=10)).partition(" ")
    (answer,) = json.loads(body)
    assert kind == "MSG"
    assert "8bit" in answer["model_info"]["quantization"]
    assert answer["model_info"]["device"] == "cpu"
    assert answer["model_info"]["details"]["decode_reason"] == "the model is not on a CUDA device"
    assert "s3cret" not in "".join(said)


def test_no_stream_waits_for_the_collector_to_visit_the_model(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []

    class Server:
        def __init__(self, *arguments: object, **options: object) -> None:
            kept.append(gc.get_freeze_count())
            raise OSError("the port is taken")

    monkeypatch.setattr(websocket_server, "WebSocketServer", Server)
    try:
        with pytest.raises(OSError, match="the port is taken"):
            main(["serve", str(tiny_llama), "--device", "cpu"])
    finally:
        gc.unfreeze()
    assert kept[0] > 100_000


def test_a_model_that_cannot_be_loaded_is_an_error_at_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["serve", str(tmp_path / "nothing-here"), "--port", "0"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("lmtp-replicate: ") and "nothing-here" in said
    assert "Traceback" not in said
    assert "listening" not in caplog.text
