"""A supervised Cog runtime: started on first use and after a crash, stopped when idle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from lmtp_replicate.errors import EngineError, ModelLoadError, TransportError
from lmtp_replicate.gateway.cog_client import CogBusyError, CogClient
from lmtp_replicate.gateway.cog_events import CogEvent, Completed, Lagged, Output
from lmtp_replicate.gateway.cog_process import CogProcess
from lmtp_replicate.gateway.work_directory import WorkDirectory

logger = logging.getLogger(__name__)

_NOT_DELIVERED = "Failed to send request"
"""How coglet's error begins when its worker is gone and the model's code never saw the input."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5


@dataclass(frozen=True)
class RuntimeSettings:
    """All in seconds. `idle`: stop after that long without a prediction (None: never). `setup`:
    how long loading may take. `busy`: how long a prediction may be refused though a slot should be
    free. `grace`: how long the runtime may take to end by itself."""

    idle: float | None = None
    setup: float = 3600.0
    busy: float = 60.0
    grace: float = 5.0


@dataclass(frozen=True)
class _Instance:
    process: CogProcess
    client: CogClient

    async def stop(self, grace: float) -> None:
        try:
            await self.client.close()
        finally:
            await self.process.stop(grace)


class CogRuntime:
    """Runs predictions of one work directory; at most one process tree at a time.

    Use as an async context manager, or call `stop`.
    """

    def __init__(self, work: WorkDirectory, settings: RuntimeSettings | None = None) -> None:
        self._work = work
        self._settings = settings or RuntimeSettings()
        self._boot: asyncio.Task[_Instance] | None = None
        self._open = 0
        self._idle_timer: asyncio.TimerHandle | None = None
        self._retiring: set[asyncio.Task[None]] = set()

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
                    async with aclosing(self._checked(instance, prediction_id, values)) as events:
                        async for event in events:
                            yield event
                    return
                except CogBusyError as refusal:
                    logger.debug("%s: %s; trying again", self._work.name, refusal)
                if await self._is_serving(instance):
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
        boot, self._boot = self._boot, None
        if boot is not None:
            boot.cancel()
            with contextlib.suppress(asyncio.CancelledError, ModelLoadError):
                instance = await boot
                await instance.stop(self._settings.grace)
        if self._retiring:
            await asyncio.wait(self._retiring)

    async def _checked(
        self, instance: _Instance, prediction_id: str, values: Mapping[str, Any]
    ) -> AsyncGenerator[CogEvent, None]:
        """The events of one try, made whole; a broken runtime is retired."""
        chunks = 0
        try:
            async with aclosing(instance.client.predict(prediction_id, values)) as events:
                async for event in events:
                    match event:
                        case Output(index=index) if index == chunks:
                            chunks += 1
                        case Output() | Lagged():
                            await instance.client.cancel(prediction_id)
                            raise EngineError(
                                f"{self._work.name}: output after chunk {chunks} was lost between "
                                "the Cog runtime and the gateway"
                            )
                        case Completed():
                            yield await self._ending(instance, event)
                            return
                    yield event
        except CogBusyError:
            raise
        except TransportError as error:
            await self._is_serving(instance)
            raise EngineError(
                f"{self._work.name}: the Cog runtime died in mid-prediction (E8765): {error}"
            ) from error
        await self._is_serving(instance)
        raise EngineError(f"{self._work.name}: the Cog runtime ended the stream early (E8765)")

    async def _ending(self, instance: _Instance, event: Completed) -> Completed:
        """The end as clients should see it: the runtime's own troubles by name."""
        if event.status != "failed" or await self._is_serving(instance):
            return event
        error = event.error or "no reason"
        if error.startswith(_NOT_DELIVERED):
            raise CogBusyError(error)
        return replace(event, error=f"the Cog runtime broke in mid-prediction (E8765): {error}")

    def _pauses(self) -> list[float]:
        """Growing pauses that last `settings.busy` seconds together."""
        pauses, total, pause = [], 0.0, _FIRST_PAUSE
        while total < self._settings.busy:
            pauses.append(pause)
            total, pause = total + pause, min(2 * pause, _LONGEST_PAUSE)
        return pauses

    def _instance(self) -> _Instance | None:
        boot = self._boot
        if boot is None or not boot.done() or boot.cancelled() or boot.exception():
            return None
        return boot.result()

    async def _ready(self) -> _Instance:
        """The running instance, booted if there is none; all callers share one boot."""
        instance = self._instance()
        if instance is not None and instance.process.exited.done():
            self._retire(instance)
        if self._boot is None or (self._boot.done() and self._instance() is None):
            self._boot = asyncio.create_task(self._start())
        return await asyncio.shield(self._boot)

    async def _start(self) -> _Instance:
        process = await CogProcess.start(self._work)
        instance = _Instance(process, CogClient(process.url))
        try:
            async with asyncio.timeout(self._settings.setup):
                await self._set_up(instance)
        except TimeoutError as error:
            await instance.stop(0)
            raise ModelLoadError(
                f"{self._work.name}: setup took longer than {self._settings.setup:g} s (E6716)"
            ) from error
        except BaseException:
            await instance.stop(0)
            raise
        return instance

    async def _set_up(self, instance: _Instance) -> None:
        """Return when the runtime is ready. coglet can only be asked, hence the pauses."""
        pause = _FIRST_PAUSE
        while True:
            health = await instance.client.health()
            if health.serving:
                return
            if health.status in ("SETUP_FAILED", "DEFUNCT", "UNHEALTHY"):
                raise ModelLoadError(_setup_failed(self._work, health.logs))
            await asyncio.wait({instance.process.exited}, timeout=pause)
            if instance.process.exited.done():
                status = instance.process.exited.result()
                raise ModelLoadError(
                    f"{self._work.name}: the Cog runtime ended with status {status} in setup "
                    f"(E9243)\n{instance.process.log_tail()}"
                )
            pause = min(1.5 * pause, _LONGEST_PAUSE)

    async def _is_serving(self, instance: _Instance) -> bool:
        """Whether the instance can still run predictions; if not, it is retired."""
        if not instance.process.exited.done() and (await instance.client.health()).serving:
            return True
        self._retire(instance)
        return False

    def _retire(self, instance: _Instance) -> None:
        """Forget and end a broken instance; the next prediction boots another."""
        if self._instance() is instance:
            logger.error("%s: the Cog runtime is broken; stopping it", self._work.name)
            self._boot = None
            self._stop_later(instance, grace=0)

    def _stop_later(self, instance: _Instance, grace: float) -> None:
        task = asyncio.create_task(instance.stop(grace))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _begin(self) -> None:
        self._open += 1
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _end(self) -> None:
        self._open -= 1
        if self._open == 0 and self._settings.idle is not None:
            loop = asyncio.get_running_loop()
            self._idle_timer = loop.call_later(self._settings.idle, self._stop_idle)

    def _stop_idle(self) -> None:
        instance = self._instance()
        if instance is not None:
            logger.info("%s: idle, stopping the Cog runtime", self._work.name)
            self._boot = None
            self._stop_later(instance, self._settings.grace)


def _setup_failed(work: WorkDirectory, logs: str) -> str:
    """What the model's own code said, without coglet's narration."""
    lines = [line for line in logs.splitlines() if not line.startswith("[coglet")]
    text = "\n".join(lines or logs.splitlines())
    return f"{work.name}: setup failed (E9243)\n{text[-4000:]}"
