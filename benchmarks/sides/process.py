"""A side's process: what it says goes to a log, and it never outlives the benchmark."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.sides.side import SideError

START_SECONDS = 600


def free_port() -> int:
    """A port nobody listens on at 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class SideProcess:
    """`command` in a process group of its own. Its log is `log`."""

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._command = list(command)
        self._environment = os.environ | (environment or {})
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._drain: asyncio.Task[None] | None = None

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "not started"
        return self._process

    async def start(self, *, answers: bool) -> None:
        """Start. With `answers`, standard output is the caller's to read, else part of the log."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("w") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE if answers else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log if answers else asyncio.subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
                limit=2**28,
            )

    async def wait_for(self, text: str) -> str:
        """The first line of output that holds `text`. The rest goes to the log from then on."""
        output = self.process.stdout
        assert output is not None
        try:
            with self._log.open("ab", buffering=0) as log:
                async with asyncio.timeout(START_SECONDS):
                    async for line in output:
                        log.write(line)
                        if text.encode() in line:
                            self._drain = asyncio.create_task(self._copy(output))
                            return line.decode()
        except TimeoutError:
            raise SideError(f"did not say {text!r} in time; see {self._log}") from None
        raise SideError(f"ended before it said {text!r}; see {self._log}")

    async def stop(self) -> None:
        """Kill the process and what it started."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        if self._drain is not None:
            await self._drain

    def memory(self) -> dict[str, int]:
        """Bytes of the process (Linux): resident, its most since start or `reset_peak`, and the
        part that is no file (weights that are mapped from a file can be dropped any time)."""
        path = Path(f"/proc/{self.process.pid}/status")
        lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
        fields = {"resident": "VmRSS", "peak": "VmHWM", "anonymous": "RssAnon"}
        return {
            f"{name}_bytes": int(lines[field].split()[0]) * 1024 for name, field in fields.items()
        }

    def reset_peak(self) -> None:
        """Let the peak begin anew from what is resident now."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    async def _copy(self, output: asyncio.StreamReader) -> None:
        with self._log.open("ab", buffering=0) as log:
            async for line in output:
                log.write(line)
