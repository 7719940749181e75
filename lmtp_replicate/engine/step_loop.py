"""The engine's only thread: ops in, steps, items out.

Other threads put ops into an inbox or mark a stream as cancelled; everything else belongs to this
thread. It sleeps until there is something to do. A step for which torch finds no memory on its
device ends the streams in it. Whatever else goes wrong in a step beyond one stream ends the loop
and fails every open stream with the reason.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lmtp_replicate.engine import answers
from lmtp_replicate.engine.admission import Admission
from lmtp_replicate.engine.interface import Sink
from lmtp_replicate.engine.pace import Pace
from lmtp_replicate.engine.plan import Plan, Work
from lmtp_replicate.engine.sampling import Choice, Draw, Outcome, Sampler, Scored
from lmtp_replicate.engine.scheduler import Scheduler
from lmtp_replicate.engine.stream import Stream
from lmtp_replicate.engine.threads import begin_thread
from lmtp_replicate.protocol.messages import (
    Ending,
    ErrorItem,
    FinishReason,
    Generate,
    Score,
    StreamItem,
    is_last,
)

logger = logging.getLogger(__name__)

CLOSED = "the engine was closed"
TOO_LARGE = (
    "the server's device has too little memory for a step; a smaller kv_cache_bytes leaves more"
)


class Forward(Protocol):
    """Runs a plan's tokens; two implementations, packed and one by one."""

    def forward(self, plan: Plan) -> Tensor:
        """Logits of the plan's rows, `[rows, width]`. If a device's memory does not suffice, raises
        torch.OutOfMemoryError, and the plan's changes have been carried out."""


@dataclass(slots=True, eq=False)
class Submission:
    """An op on its way into the loop, and the `Ticket` of whoever sent it."""

    op: Generate | Score
    sink: Sink
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True  # seen at the next step: while a stream is open the loop never sleeps


class StepLoop:
    """Runs steps while there are streams."""

    def __init__(
        self,
        admission: Admission,
        scheduler: Scheduler,
        model: Forward,
        sampler: Sampler,
        pace: Pace,
        device: torch.device,
    ) -> None:
        self._admission = admission
        self._scheduler = scheduler
        self._model = model
        self._sampler = sampler
        self._pace = pace
        self._device = device
        self._changed = threading.Condition()
        self._inbox: list[Submission] = []
        self._open: dict[Stream, Submission] = {}
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.steps = 0

    @property
    def failure(self) -> str | None:
        return self._failure

    def statistics(self) -> dict[str, int]:
        """Open figures, a moment old at most. Any thread."""
        return {
            "steps": self.steps,
            "running": len(self._scheduler.running),
            "waiting": len(self._scheduler.waiting),
            **self._scheduler.statistics(),
        }

    def start(self) -> None:
        self._thread.start()

    def submit(self, op: Generate | Score, sink: Sink) -> Submission:
        submission = Submission(op, sink)
        with self._changed:
            refused = self._failure
            if refused is None:
                self._inbox.append(submission)
                self._changed.notify()
        if refused is not None:
            sink([ErrorItem(op.stream_id, refused)])
        return submission

    def close(self) -> None:
        with self._changed:
            if self._failure is None:
                self._failure = CLOSED
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            begin_thread(self._device)
            with torch.inference_mode():
                while self._wait():
                    self._take_inbox()
                    self._end_cancelled()
                    self._step()
        except BaseException as error:
            logger.exception("The engine failed.")
            with self._changed:
                self._failure = self._failure or f"the engine failed: {_describe(error)}"
        self._fail_open()

    def _wait(self) -> bool:
        """Sleep until there is something to do; False when the loop is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._open or self._inbox or self._failure)
            return self._failure is None

    def _take_inbox(self) -> None:
        with self._changed:
            inbox, self._inbox = self._inbox, []
        for submission in inbox:
            admitted = self._admission.admit(submission.op)
            if isinstance(admitted, Stream):
                self._open[admitted] = submission
                self._scheduler.add(admitted)
            else:
                _deliver(submission.sink, [admitted])

    def _end_cancelled(self) -> None:
        for stream in [s for s, submission in self._open.items() if submission.cancelled]:
            self._deliver(stream, [Ending(stream.op.stream_id, FinishReason.CANCELLED)])

    def _step(self) -> None:
        """Schedule, forward, sample, deliver."""
        plan = self._scheduler.schedule()
        if not plan.works:
            return
        began = time.perf_counter()
        outcomes = self._outcomes(plan)
        if outcomes is None:
            self._give_up(plan)
            return
        self._pace.observe(plan.decoding, plan.prompt_tokens, time.perf_counter() - began)
        self._scheduler.advance(plan)
        self.steps += 1
        self._answer(plan, outcomes)

    def _outcomes(self, plan: Plan) -> Sequence[Outcome] | None:
        """What has become of the plan's rows; None if the device has too little memory."""
        try:
            logits = self._model.forward(plan)
            rows = [_row(work, at) for work in plan.works for at in work.rows]
            return self._sampler.step(logits, rows)
        except torch.OutOfMemoryError as error:
            logger.error("A step of %d streams comes to nothing: %s", len(plan.works), error)
            return None

    def _give_up(self, plan: Plan) -> None:
        """End the streams of a step that came to nothing; the others are as they were before."""
        torch.cuda.empty_cache()
        for work in plan.works:
            self._deliver(work.stream, [ErrorItem(work.stream.op.stream_id, TOO_LARGE)])

    def _answer(self, plan: Plan, outcomes: Sequence[Outcome]) -> None:
        done = 0
        # The rows are counted before any answer changes what a stream wants next.
        for work, rows in [(work, len(work.rows)) for work in plan.works]:
            if rows:
                items = self._items(work.stream, outcomes[done : done + rows])
                self._deliver(work.stream, items)
            done += rows

    def _items(self, stream: Stream, outcomes: Sequence[Outcome]) -> list[StreamItem]:
        """What the stream is told; a row without a result fails this stream only."""
        logprobs: list[float] = []
        for outcome in outcomes:
            if isinstance(outcome, Choice):
                return [answers.generated(stream, *outcome, self._admission.card.eos_token_ids)]
            if not isinstance(outcome, float):
                error = ErrorItem(stream.op.stream_id, outcome.reason)
                return [*answers.scored(stream, logprobs), error]
            logprobs.append(outcome)
        return [*answers.scored(stream, logprobs)]

    def _deliver(self, stream: Stream, items: Sequence[StreamItem]) -> None:
        """Hand `items` to the stream's sink; the last one ends the stream."""
        ended = is_last(items[-1])
        if ended:
            self._scheduler.finish(stream)
        submission = self._open.pop(stream) if ended else self._open[stream]
        _deliver(submission.sink, items)

    def _fail_open(self) -> None:
        """Tell every open stream why there is nothing more to come."""
        assert self._failure is not None
        with self._changed:
            submissions = [*self._open.values(), *self._inbox]
            self._open, self._inbox = {}, []
        for submission in submissions:
            _deliver(submission.sink, [ErrorItem(submission.op.stream_id, self._failure)])


def _row(work: Work, position: int) -> Draw | Scored:
    """What is wanted of the logits at `position`."""
    stream = work.stream
    if isinstance(stream.op, Score):
        return Scored(stream.tokens[position + 1])
    op = stream.op
    return Draw(op.sampling, op.mask, op.top_logprobs, stream.history, position + 1, stream.entropy)


def _deliver(sink: Sink, items: Sequence[StreamItem]) -> None:
    try:
        sink(items)
    except Exception:  # a sink must not raise; if one does, the others must not suffer
        logger.exception("A sink raised; its items are lost.")


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
