"""A supervised Cog runtime: started on first use and after a crash, stopped when idle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from lmtp_replicate.errors import EngineError, ModelLoadError, TransportError
from lmtp_replicate.gateway.cog_client import CogBusyError
from lmtp_replicate.gateway.cog_events import CogEvent
from lmtp_replicate.gateway.cog_instance import CogInstance
from lmtp_replicate.gateway.work_directory import WorkDirectory

logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5
"""Seconds before a refused prediction is tried again."""


@dataclass(frozen=True)
class RuntimeSettings:
    """All in seconds. `idle`: stop after that long without a prediction (None: never). `setup`:
    how long loading may take. `busy`: how long a prediction may be refused though a slot should be
    free. `grace`: how long the runtime may take to end by itself."""

    idle: float | None = None
    setup: float = 3600.0
    busy: float = 60.0
    grace: float = 2.0


class CogRuntime:
    """Runs predictions of one work directory; at most one instance takes them at a time.

    Use as an async context manager, or call `stop`.
    """

    def __init__(self, work: WorkDirectory, settings: RuntimeSettings | None = None) -> None:
        self._work = work
        self._settings = settings or RuntimeSettings()
        self._boot: asyncio.Task[CogInstance] | None = None
        self._checking: asyncio.Task[None] | None = None
        self._stopping: set[asyncio.Task[None]] = set()
        self._open = 0
        self._idle_timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def pid(self) -> int | None:
        """The running server's process id (and group), None while none is ready."""
        instance = self._instance()
        return instance.process.pid if instance else None

    async def predict(
        self, prediction_id: str, values: Mapping[str, Any]
    ) -> AsyncGenerator[CogEvent, None]:
        """Run a prediction, starting the runtime if need be; closing the iterator cancels it.

        The last event is Completed, and every chunk comes exactly once and in order. Raises
        ModelLoadError when setup fails, PredictionError when the input is refused, EngineError
        when the runtime dies or loses output.
        """
        self._begin()
        try:
            for pause in self._pauses():
                instance = await self._ready()
                try:
                    async with aclosing(instance.predict(prediction_id, values)) as events:
                        async for event in events:
                            yield event
                    return
                except CogBusyError as refusal:
                    logger.debug("%s: %s; trying again", self._work.name, refusal)
                finally:
                    self._check_soon(instance)
                await asyncio.sleep(pause)
            raise EngineError(f"{self._work.name}: the Cog runtime keeps refusing predictions")
        finally:
            self._end()

    async def cancel(self, prediction_id: str) -> None:
        """Ask for the prediction's end; one that is not running is no error."""
        instance = self._instance()
        if instance is not None:
            with contextlib.suppress(TransportError):  # then it ended with its runtime
                await instance.client.cancel(prediction_id)

    async def stop(self) -> None:
        """End the runtime and wait until nothing of it is left. It may be used again."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._checking is not None:
            self._checking.cancel()
            self._checking = None
        boot, self._boot = self._boot, None
        if boot is not None:
            boot.cancel()
            with contextlib.suppress(asyncio.CancelledError, ModelLoadError):
                instance = await boot
                await instance.stop(self._settings.grace)
        if self._stopping:
            await asyncio.wait(self._stopping)

    def _pauses(self) -> Iterator[float]:
        """Growing pauses that last `settings.busy` seconds together."""
        total, pause = 0.0, _FIRST_PAUSE
        while total < self._settings.busy:
            yield pause
            total, pause = total + pause, min(2 * pause, _LONGEST_PAUSE)

    def _instance(self) -> CogInstance | None:
        boot = self._boot
        if boot is None or not boot.done() or boot.cancelled() or boot.exception():
            return None
        return boot.result()

    async def _ready(self) -> CogInstance:
        """The running instance, booted if there is none; all callers share one boot."""
        if self._checking is not None:
            await asyncio.shield(self._checking)
        instance = self._instance()
        if instance is not None and instance.process.exited.done():
            self._retire(instance)
        if self._boot is None or (self._boot.done() and self._instance() is None):
            boot = CogInstance.boot(self._work, longest=self._settings.setup)
            self._boot = asyncio.create_task(boot)
        return await asyncio.shield(self._boot)

    def _check_soon(self, instance: CogInstance) -> None:
        """coglet takes predictions even when the model says that it is not well; so we look after
        every prediction, off its way, and the next one waits for the result."""
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._check(instance))

    async def _check(self, instance: CogInstance) -> None:
        if not await instance.serving():
            self._retire(instance)

    def _retire(self, instance: CogInstance) -> None:
        """Forget and end a broken instance; the next prediction boots another."""
        if self._instance() is instance:
            logger.error("%s: the Cog runtime is broken; stopping it", self._work.name)
            self._stop_later(instance, grace=0)

    def _stop_later(self, instance: CogInstance, grace: float) -> None:
        self._boot = None
        task = asyncio.create_task(instance.stop(grace))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    def _begin(self) -> None:
        self._open += 1
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _end(self) -> None:
        self._open -= 1
        if self._open == 0:
            self._stop_after_idling()

    def _stop_after_idling(self) -> None:
        if self._settings.idle is not None:
            loop = asyncio.get_running_loop()
            self._idle_timer = loop.call_later(self._settings.idle, self._stop_idle)

    def _stop_idle(self) -> None:
        instance = self._instance()
        if self._boot is not None and not self._boot.done():
            self._stop_after_idling()  # everybody has left before the boot was done
        elif instance is not None:
            logger.info("%s: idle, stopping the Cog runtime", self._work.name)
            self._stop_later(instance, self._settings.grace)
