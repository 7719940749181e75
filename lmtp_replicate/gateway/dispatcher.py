"""Takes the predictions of one model to its Cog runtime: first come first served, slots bounded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing

from lmtp_replicate.errors import LmtpReplicateError
from lmtp_replicate.gateway.cog_runtime import CogRuntime
from lmtp_replicate.gateway.prediction import Prediction, Status

logger = logging.getLogger(__name__)


class QueueFullError(LmtpReplicateError):
    """Too many predictions wait for a slot already."""


class Dispatcher:
    """Runs predictions independently of whoever reads them; at most `slots` at once.

    `on_end` is called when a prediction has ended and holds no slot any more.
    """

    def __init__(
        self,
        runtime: CogRuntime,
        *,
        slots: int,
        longest_queue: int,
        on_end: Callable[[Prediction], None],
    ) -> None:
        self._runtime = runtime
        self._on_end = on_end
        self._slots = asyncio.Semaphore(slots)  # wakes its waiters in order
        self._most = slots + longest_queue
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._deadlines: dict[str, asyncio.TimerHandle] = {}

    def submit(self, prediction: Prediction) -> None:
        """Take the prediction to its end, in the background. QueueFullError when there is no
        room."""
        if len(self._tasks) >= self._most:
            raise QueueFullError(f"{len(self._tasks)} predictions are queued or running already")
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._run(prediction))
        self._tasks[prediction.id] = task
        if prediction.deadline is not None:
            seconds = prediction.deadline.total_seconds()
            self._deadlines[prediction.id] = loop.call_later(seconds, self._expire, prediction)
        task.add_done_callback(lambda _: self._finished(prediction))

    def cancel(self, prediction: Prediction) -> None:
        """End the prediction for its clients now, and in the runtime as soon as that hears it."""
        waiting = prediction.status is Status.STARTING
        prediction.cancel()
        self._give_up(prediction, waiting=waiting)

    async def close(self) -> None:
        """Fail what is open."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _expire(self, prediction: Prediction) -> None:
        waiting = prediction.status is Status.STARTING
        prediction.expire()
        self._give_up(prediction, waiting=waiting)

    def _give_up(self, prediction: Prediction, *, waiting: bool) -> None:
        task = self._tasks.get(prediction.id)
        if task is None:
            return
        if waiting:
            task.cancel()
        else:
            # The slot stays taken until the runtime says that it has stopped.
            cancelling = asyncio.create_task(self._runtime.cancel(prediction.id))
            task.add_done_callback(lambda _: cancelling.cancel())

    async def _run(self, prediction: Prediction) -> None:
        try:
            async with self._slots:
                values = prediction.input or {}
                async with aclosing(self._runtime.predict(prediction.id, values)) as events:
                    async for event in events:
                        prediction.apply(event)
        except LmtpReplicateError as error:
            logger.warning("prediction %s failed: %s", prediction.id, error)
            prediction.fail(str(error))
        except Exception:
            logger.exception("prediction %s failed unexpectedly", prediction.id)
            prediction.fail("an internal error of the gateway; its log says more (E1000)")

    def _finished(self, prediction: Prediction) -> None:
        # No effect on a prediction that has an end already.
        prediction.fail("Prediction interrupted: the gateway stopped (E8367)")
        self._on_end(prediction)
        del self._tasks[prediction.id]
        deadline = self._deadlines.pop(prediction.id, None)
        if deadline is not None:
            deadline.cancel()
