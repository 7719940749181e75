"""The real Cog runtime on a scripted work directory."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from lmtp_replicate.building.schema import openapi_schema

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "lmtp_replicate" / "building" / "templates" / "run.py"
READY = "now accepting requests"


def scripted_work_directory(folder: Path) -> Path:
    """Make `folder` a work directory as `./build` would, but with the scripted engine: the
    template's `run.py` with another `setup`."""
    text = TEMPLATE.read_text()
    load = "CogRunner.load(Path(__file__).resolve().parent)"
    assert load in text
    text = text.replace(load, "scripted_runner(Path(__file__).resolve().parent)")
    text = text.replace(
        "from lmtp_replicate.serving.cog_runner import CogRunner",
        "from tests.serving.scripted_runner import scripted_runner",
    )
    return with_schema(folder, text)


def with_schema(folder: Path, run: str) -> Path:
    """Write `run.py` and the schema that the runtime reads beside it."""
    (folder / ".cog").mkdir(parents=True)
    (folder / "run.py").write_text(run)
    (folder / ".cog" / "openapi_schema.json").write_text(json.dumps(openapi_schema(run)))
    return folder


@dataclass
class Coglet:
    """A running runtime; `url` has no trailing slash."""

    url: str
    process: subprocess.Popen[str]
    folder: Path
    _log: list[str] = field(default_factory=list)
    _logged: threading.Condition = field(default_factory=threading.Condition)

    def wait_for_log(self, text: str) -> None:
        """Wait until the runtime or its worker has written a line with `text`."""
        with self._logged:
            found = self._logged.wait_for(lambda: any(text in line for line in self._log), 60)
        assert found, "".join(self._log)

    def read_log(self) -> None:
        """Take the process's output until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._logged:
                self._log.append(line)
                self._logged.notify_all()

    @asynccontextmanager
    async def predict(self, **inputs: Any) -> AsyncIterator[AsyncIterator[Event]]:
        """Start a prediction; its events, as they come."""
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"{self.url}/predictions",
                json={"input": inputs},
                headers={"Accept": "text/event-stream"},
            ) as response,
        ):
            assert response.status == 200, await response.text()
            yield _events(response.content)

    async def answer(self, **inputs: Any) -> dict[str, Any]:
        """Run a prediction to its end; the runtime's `completed`."""
        async with self.predict(**inputs) as events:
            return [event async for event in events][-1].data

    async def cancel(self, prediction: str) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/predictions/{prediction}/cancel") as response,
        ):
            assert response.status == 200

    async def health(self) -> dict[str, Any]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.url}/health-check") as response,
        ):
            health: dict[str, Any] = await response.json()
            return health


@dataclass(frozen=True)
class Event:
    """One server-sent event of the runtime."""

    kind: str
    data: dict[str, Any]


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[Event]:
    kind = ""
    while line := (await asyncio.wait_for(content.readline(), 30)).decode():
        if line.startswith("event: "):
            kind = line.removeprefix("event: ").strip()
        elif line.startswith("data: "):
            yield Event(kind, json.loads(line.removeprefix("data: ")))
            if kind == "completed":
                return
    raise AssertionError("the runtime's stream ended without `completed`")


@contextmanager
def coglet(folder: Path, slots: int = 8) -> Iterator[Coglet]:
    """Run the work directory `folder`; whatever happens, nothing of it is left running."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # coglet keeps each prediction's outputs below the temporary folder and never removes them.
    (temporary := folder / "tmp").mkdir()
    environment: Mapping[str, str] = os.environ | {
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(temporary),
        "PORT": str(port),
        "COG_MAX_CONCURRENCY": str(slots),
        "COG_PREDICT_TYPE_STUB": "run.py:Runner",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    runtime = Coglet(f"http://127.0.0.1:{port}", process, folder)
    reader = threading.Thread(target=runtime.read_log, daemon=True)
    reader.start()
    try:
        runtime.wait_for_log(READY)
        yield runtime
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
        reader.join(timeout=10)
