"""One life of a Cog runtime: booted, asked for predictions, stopped for good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from lmtp_replicate.errors import EngineError, ModelLoadError, TransportError
from lmtp_replicate.gateway.cog_client import CogBusyError, CogClient
from lmtp_replicate.gateway.cog_events import CogEvent, Completed, Lagged, Output
from lmtp_replicate.gateway.cog_process import CogProcess
from lmtp_replicate.gateway.work_directory import WorkDirectory

_NOT_DELIVERED = "Failed to send request"
"""How coglet's error begins when its worker is gone and the model's code never saw the input."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5
"""Seconds between questions about setup: coglet tells nothing by itself."""


@dataclass(frozen=True)
class CogInstance:
    """A process tree and the way to speak to it; made by `boot`, ended by `stop`."""

    work: WorkDirectory
    process: CogProcess
    client: CogClient

    @classmethod
    async def boot(cls, work: WorkDirectory, *, longest: float) -> CogInstance:
        """Start and wait until setup is done; ModelLoadError when it fails or takes more than
        `longest` seconds, and then nothing is left running."""
        process = await CogProcess.start(work)
        instance = cls(work, process, CogClient(process.url))
        try:
            async with asyncio.timeout(longest):
                await instance._set_up()
        except BaseException as error:
            await instance.stop(grace=0)
            if isinstance(error, TimeoutError):
                text = f"{work.name}: setup took longer than {longest:g} s (E6716)"
                raise ModelLoadError(f"{text}\n{process.log_tail()}") from error
            raise
        return instance

    async def serving(self) -> bool:
        """Whether it can still run predictions."""
        return not self.process.exited.done() and (await self.client.health()).serving

    async def predict(
        self, prediction_id: str, values: Mapping[str, Any]
    ) -> AsyncGenerator[CogEvent, None]:
        """The events of a prediction, complete and in order, Completed last.

        Raises CogBusyError when it did not run, PredictionError when its input is refused,
        EngineError when the runtime dies or loses output.
        """
        chunks = 0
        try:
            async with aclosing(self.client.predict(prediction_id, values)) as events:
                async for event in events:
                    match event:
                        case Output(index=index) if index == chunks:
                            chunks += 1
                        case Output() | Lagged():
                            await self.client.cancel(prediction_id)
                            raise EngineError(
                                f"{self.work.name}: output after chunk {chunks} was lost between "
                                "the Cog runtime and the gateway"
                            )
                        case Completed(status="failed"):
                            yield await self._failure(event)
                            return
                        case Completed():
                            yield event
                            return
                    yield event
        except CogBusyError:
            raise
        except TransportError as error:
            raise self._broke(str(error)) from error
        raise self._broke("the stream ended early")

    async def stop(self, grace: float) -> None:
        """End it; see `CogProcess.stop`."""
        try:
            await self.client.close()
        finally:
            await self.process.stop(grace)

    async def _failure(self, event: Completed) -> Completed:
        """A failure as clients should see it: the runtime's own troubles by name."""
        if await self.serving():
            return event
        error = event.error or "no reason"
        if error.startswith(_NOT_DELIVERED):
            raise CogBusyError(error)
        return replace(event, error=str(self._broke(error)))

    def _broke(self, reason: str) -> EngineError:
        return EngineError(
            f"{self.work.name}: the Cog runtime broke in mid-prediction (E8765): {reason}"
        )

    async def _set_up(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            health = await self.client.health()
            if health.serving:
                return
            if health.status in ("SETUP_FAILED", "DEFUNCT", "UNHEALTHY"):
                raise ModelLoadError(
                    f"{self.work.name}: setup failed (E9243)\n{_said(health.logs)}"
                    f"{health.complaint}"
                )
            await asyncio.wait({self.process.exited}, timeout=pause)
            if self.process.exited.done():
                raise ModelLoadError(
                    f"{self.work.name}: the Cog runtime ended with status "
                    f"{self.process.exited.result()} in setup (E9243)\n{self.process.log_tail()}"
                )
            pause = min(1.5 * pause, _LONGEST_PAUSE)


def _said(logs: str) -> str:
    """What the model's own code said, without coglet's narration."""
    lines = [line for line in logs.splitlines() if not line.startswith("[coglet")]
    return "\n".join(lines or logs.splitlines())[-4000:]
