"""One operating system process tree: `python -m cog.server.http` for a work directory."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import PIPE, STDOUT, Process
from collections import deque
from pathlib import Path

from lmtp_replicate.errors import ModelLoadError
from lmtp_replicate.gateway.work_directory import WorkDirectory

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
_LONGEST_LINE = 8 << 20
"""coglet cuts a log line at 4 MiB before it is escaped to JSON."""
_LEVELS = {"ERROR": logging.ERROR, "WARN": logging.WARNING}
_PRINTED = {"coglet::setup", "coglet::user"}
"""Targets under which coglet logs what the model's own code printed."""
_SECRETS = ("REPLICATE_API_TOKEN", "LMTP_REPLICATE_TOKEN")
"""Not the model's business."""

_LAUNCH = """
import ctypes, runpy, signal
prctl = getattr(ctypes.CDLL(None), "prctl", None)
if prctl is not None:
    prctl(1, signal.SIGTERM)
runpy.run_module("cog.server.http", run_name="__main__", alter_sys=True)
"""
"""`python -m cog.server.http`, which on Linux is told to end when we die without a chance to end
it: PR_SET_PDEATHSIG (prctl(2)), set by the child itself because fork hooks and threads do not mix.
"""


class CogProcess:
    """The server, its worker and their temporary folder; made by `start`, ended by `stop`.

    `exited` is done when the server is; its result is the exit status (negative: a signal).
    """

    def __init__(
        self, work: WorkDirectory, process: Process, place: socket.socket, temporary: Path
    ) -> None:
        self._name = work.name
        self._process = process
        self._place = place
        self._temporary = temporary
        self._tail: deque[str] = deque(maxlen=30)
        self._is_wanted = True
        self.url = f"http://{HOST}:{place.getsockname()[1]}"
        self.exited = asyncio.create_task(process.wait())
        self._forwarding = asyncio.create_task(self._forward_logs())
        # For a process that ends without its event loop getting that far.
        atexit.register(self._kill)

    @classmethod
    async def start(cls, work: WorkDirectory) -> CogProcess:
        """Spawn the server. It is not ready yet; ModelLoadError when Python cannot be run."""
        place = _reserved_port()
        temporary = Path(tempfile.mkdtemp(prefix="lmtp-cog-"))
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _LAUNCH, "--host", HOST),
                cwd=work.path,
                env=_environment(work, place.getsockname()[1], temporary),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=PIPE,
                stderr=STDOUT,
                limit=_LONGEST_LINE,
                start_new_session=True,  # a group of its own, so that the worker dies with it
            )
        except BaseException as error:
            place.close()
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError):
                text = f"{work.name}: cannot start the Cog runtime: {error}"
                raise ModelLoadError(text) from error
            raise
        logger.info("%s: started the Cog runtime (process %d)", work.name, process.pid)
        return cls(work, process, place, temporary)

    @property
    def pid(self) -> int:
        """Process id of the server and of its process group."""
        return self._process.pid

    def log_tail(self) -> str:
        """The newest log lines, for messages about a failure."""
        return "\n".join(self._tail)

    async def stop(self, grace: float) -> None:
        """Ask the server to end, kill what is left of its group after `grace` seconds, clean up."""
        self._is_wanted = False
        try:
            if not self.exited.done():
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(signal.SIGTERM)
                await asyncio.wait({self.exited}, timeout=grace)
        finally:
            # Also when our own task is being cancelled: nothing may stay behind.
            self._kill()
            self._place.close()
            atexit.unregister(self._kill)
        await self.exited
        # The pipe stays open if the model has put a process of its own out of our reach.
        await asyncio.wait({self._forwarding}, timeout=1)
        self._forwarding.cancel()
        shutil.rmtree(self._temporary, ignore_errors=True)
        logger.info("%s: the Cog runtime ended", self._name)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    async def _forward_logs(self) -> None:
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:  # longer than the limit: asyncio has dropped it
                continue
            if not line:
                return
            self._forward(line.decode("utf-8", "replace").rstrip("\n"))

    def _forward(self, line: str) -> None:
        """coglet logs JSON objects; anything else was printed past it."""
        level, message = logging.INFO, line
        with contextlib.suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            fields = dict(entry["fields"])
            message = str(fields.pop("message", ""))
            printed = entry["target"] in _PRINTED
            level = _LEVELS.get(entry["level"], logging.INFO if printed else logging.DEBUG)
            if not self._is_wanted and not printed:
                level = logging.DEBUG  # coglet calls each prediction that we end with it an error
            if "error" in fields:
                message += f": {fields['error']}"
        if level > logging.DEBUG:
            self._tail.append(message)
        logger.log(level, "%s: %s", self._name, message)


def _reserved_port() -> socket.socket:
    """A socket bound to a free port and never listening: the server may bind there too, as it sets
    SO_REUSEADDR like us, and nobody else is given the port meanwhile."""
    place = socket.socket()
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    place.bind((HOST, 0))
    return place


def _environment(work: WorkDirectory, port: int, temporary: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    # coglet spawns its worker as `python` from PATH, whatever runs the server.
    here = str(Path(sys.executable).parent)
    return {
        **inherited,
        **work.environment,
        "PATH": os.pathsep.join([here, inherited.get("PATH", os.defpath)]),
        "TMPDIR": str(temporary),
        "PORT": str(port),
        "COG_PREDICT_TYPE_STUB": work.predictor,
        "COG_MAX_CONCURRENCY": str(work.slots),
        "PYTHONUNBUFFERED": "1",
    }
