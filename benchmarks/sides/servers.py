"""The servers that are compared: ours, and LMQL 0.7.3's own."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from benchmarks.sides.clients import Client, OurClient, UpstreamClient
from benchmarks.sides.process import SideProcess, free_port
from benchmarks.sides.side import SideError
from benchmarks.sides.websocket import WebSocketSide


class OurServer(WebSocketSide):
    """`lmtp-replicate serve`. `has_upstream_client`: driven by LMQL's client instead of ours."""

    def __init__(
        self,
        name: str,
        folder: Path,
        dtype: str,
        logs: Path,
        *,
        quantize: str | None = None,
        has_decode_graphs: bool = False,
        has_upstream_client: bool = False,
    ) -> None:
        command = [sys.executable, "-m", "lmtp_replicate", "serve", str(folder)]
        options = ["--host", "127.0.0.1", "--port", "0", "--dtype", dtype]
        if quantize is not None:
            options += ["--quantize", quantize]
        if has_decode_graphs:
            options.append("--decode-graphs")
        super().__init__(name, SideProcess([*command, *options], logs / f"{name}.log"))
        self._folder = folder
        self._has_upstream_client = has_upstream_client

    async def _connected(self) -> Client:
        await self._process.start(answers=False)
        line = await self._process.wait_for("listening on ws://")
        found = re.search(r"listening on ws://[^ ]*:(\d+)", line)
        if found is None:
            raise SideError(f"{self.name} does not say its port: {line!r}")
        if self._has_upstream_client:
            return await UpstreamClient.connect(int(found[1]), str(self._folder))
        return OurClient(int(found[1]))


class UpstreamServer(WebSocketSide):
    """`lmql serve-model`, driven by LMQL's own client, in an empty home folder and offline."""

    def __init__(
        self, name: str, folder: Path, dtype: str, logs: Path, *, cuda: bool = False
    ) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="lmql-home-")
        self._folder = folder
        self._port = free_port()
        lmql = str(Path(sys.executable).with_name("lmql"))
        command = [lmql, "serve-model", str(folder), "--port", str(self._port), "--static"]
        environment = {
            "HOME": self._home.name,
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        # --dtype knows float16 and quantised ones only; other options go to from_pretrained.
        options = ["--host", "127.0.0.1", "--torch_dtype", dtype]
        if cuda:
            options.append("--cuda")
        process = SideProcess([*command, *options], logs / f"{name}.log", environment)
        super().__init__(name, process)

    async def _connected(self) -> Client:
        await self._process.start(answers=False)
        await self._process.wait_for("Serving LMTP endpoint")
        return await UpstreamClient.connect(self._port, str(self._folder))

    async def close(self) -> None:
        await super().close()
        self._home.cleanup()
