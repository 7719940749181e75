"""The gateway as a whole: work directories in, a URL that speaks Replicate's API out."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web

from lmtp_replicate.errors import ConfigError
from lmtp_replicate.gateway.catalog import Catalog, Model
from lmtp_replicate.gateway.cog_runtime import CogRuntime, RuntimeSettings
from lmtp_replicate.gateway.dispatcher import Dispatcher
from lmtp_replicate.gateway.faults import Faults
from lmtp_replicate.gateway.input_schema import InputSchema
from lmtp_replicate.gateway.prediction_store import PredictionStore, Retention
from lmtp_replicate.gateway.server import Server
from lmtp_replicate.gateway.work_directory import WorkDirectory, find_work_directories

logger = logging.getLogger(__name__)

LONGEST_QUEUE = 1000
"""Predictions of one model that may wait for a slot."""


class Gateway:
    """Serves the models of `work_dirs` while the `async with` block runs.

    Each entry of `work_dirs` is a work directory or a folder of them. `port` 0 takes a free one,
    `token` None makes a fresh one; `url` (without /v1) and `token` are what clients need. Raises
    ConfigError for bad work directories, names and addresses.
    """

    def __init__(
        self,
        work_dirs: Sequence[Path | str],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        owner: str = "local",
        runtime: RuntimeSettings | None = None,
        retention: Retention | None = None,
        longest_queue: int = LONGEST_QUEUE,
        faults: Faults | None = None,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", owner):
            raise ConfigError(f"owner {owner!r}: letters, digits, '_' and '-' only")
        if token is not None and not re.fullmatch(r"[!-~]+", token):
            raise ConfigError("the token must be printable ASCII without spaces")
        self.owner = owner
        self.token = token or secrets.token_urlsafe(24)
        self.url = ""
        self.faults = faults or Faults()
        self._host, self._port = host, port
        self._runtime_settings = runtime or RuntimeSettings()
        self._longest_queue = longest_queue
        self._work = find_work_directories([Path(path) for path in work_dirs])
        self._store = PredictionStore(retention or Retention())
        self._runtimes: dict[str, CogRuntime] = {}
        self._dispatchers: list[Dispatcher] = []
        self._runner: web.AppRunner | None = None

    @property
    def models(self) -> list[str]:
        """`owner/name` of every model served."""
        return [f"{self.owner}/{work.name}" for work in self._work]

    def runtime(self, name: str) -> CogRuntime:
        """The runtime behind the model of that name."""
        return self._runtimes[name]

    async def __aenter__(self) -> Self:
        catalog = Catalog(self.owner, [self._model(work) for work in self._work])
        server = Server(catalog, self._store, token=self.token, faults=self.faults)
        self._runner = web.AppRunner(server.application, access_log=None, shutdown_timeout=2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        try:
            await site.start()
        except (OSError, OverflowError) as error:  # the latter for a port that is none
            await self._runner.cleanup()
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"cannot listen on {self._host}:{self._port}: {reason}") from error
        port = self._runner.addresses[0][1]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        logger.info("serving %s at %s", ", ".join(self.models), self.url)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Predictions first: their readers see an end, and their connections close in order.
        await asyncio.gather(*(dispatcher.close() for dispatcher in self._dispatchers))
        await asyncio.gather(*(runtime.stop() for runtime in self._runtimes.values()))
        if self._runner is not None:
            await self._runner.cleanup()
        self._store.close()

    def _model(self, work: WorkDirectory) -> Model:
        runtime = CogRuntime(work, self._runtime_settings)
        dispatcher = Dispatcher(
            runtime,
            slots=work.slots,
            longest_queue=self._longest_queue,
            on_end=self._store.ended,
        )
        self._runtimes[work.name] = runtime
        self._dispatchers.append(dispatcher)
        return Model(self.owner, work, InputSchema(work.schema), dispatcher)
