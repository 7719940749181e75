"""How streams disturb each other: an op that arrives while a long stream runs, and a 4096-token
prompt beside 8 running streams."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from benchmarks.command import Command
from benchmarks.model import Shape
from benchmarks.rounds import Rounds
from benchmarks.sides.side import SideError
from benchmarks.sides.websocket import WebSocketSide
from benchmarks.statistics import percentile
from benchmarks.tables import plain_table
from benchmarks.trace import Trace
from benchmarks.workload import Request, Source

SIDES = ("ours", "ours-lmql-client", "upstream")
ARRIVAL, LONG_PROMPT = "an op arrives", "a long prompt"


@dataclass(frozen=True, slots=True)
class Sizes:
    prompt: int = 256
    running: int = 128
    """Tokens of the stream that the op meets."""
    settled: int = 32
    """Tokens after which the running streams are disturbed."""
    streams: int = 8
    lasting: int = 512
    """Tokens of each stream that the long prompt meets."""
    long: int = 4096


class Interference:
    def __init__(self, shape: Shape, sizes: Sizes) -> None:
        self._vocabulary = shape.vocabulary
        self._sizes = sizes

    async def measure(self, side: WebSocketSide, case: str, number: object) -> Mapping[str, float]:
        source = Source(self._vocabulary, case, number)
        return await (self.arrival if case == ARRIVAL else self.long_prompt)(side, source)

    async def arrival(self, side: WebSocketSide, source: Source) -> Mapping[str, float]:
        """The op's first token, and what it may take: three steps and 2.5 times its prefill."""
        sizes = self._sizes
        alone = await side.answer(Request(source.tokens(sizes.prompt), 1))
        running = Request(source.tokens(sizes.prompt), sizes.running)
        traces, op = await self._disturbed(side, [running], Request(source.tokens(sizes.prompt), 8))
        undisturbed = [
            gap
            for gap, time in zip(traces[0].gaps, traces[0].times[1:], strict=True)
            if time < op.submitted
        ]
        step, prefill = median(undisturbed), alone.first_token_seconds
        allowed = 3 * step + 2.5 * prefill
        return {
            "ttft_s": op.first_token_seconds,
            "prefill_alone_s": prefill,
            "step_s": step,
            "allowed_s": allowed,
            "share_of_allowed": op.first_token_seconds / allowed,
        }

    async def long_prompt(self, side: WebSocketSide, source: Source) -> Mapping[str, float]:
        """Inter-token latency of the running streams from the long prompt's submission to its first
        token, against the same places of an undisturbed run."""
        sizes = self._sizes
        shape = [sizes.prompt] * sizes.streams
        calm = await side.batch(
            [Request(source.tokens(length), sizes.lasting) for length in shape], sizes.streams
        )
        traces, op = await self._disturbed(
            side,
            [Request(source.tokens(length), sizes.lasting) for length in shape],
            Request(source.tokens(sizes.long), 1),
        )
        beside = _gaps_between(traces, op.submitted, op.times[0])
        if not beside:
            raise SideError("the running streams had ended when the long prompt came")
        alone = [gap for trace in calm.traces for gap in trace.gaps[sizes.settled :]]
        return {
            "itl_p95_alone_s": percentile(alone, 0.95),
            "itl_p95_beside_s": percentile(beside, 0.95),
            "itl_p95_ratio": percentile(beside, 0.95) / percentile(alone, 0.95),
            "long_ttft_s": op.first_token_seconds,
            "still_running": float(all(trace.times[-1] > op.times[0] for trace in traces)),
        }

    async def _disturbed(
        self, side: WebSocketSide, running: Sequence[Request], op: Request
    ) -> tuple[list[Trace], Trace]:
        """Start `running`; once all have `settled` tokens, answer `op` beside them."""
        settled = asyncio.Semaphore(0)

        def on_token(trace: Trace) -> None:
            if len(trace.tokens) == self._sizes.settled:
                settled.release()

        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(side.answer(request, on_token=on_token)) for request in running
            ]
            for _ in running:
                await settled.acquire()
            answered = await side.answer(op)
        return [task.result() for task in tasks], answered


def _gaps_between(traces: Sequence[Trace], start: float, end: float) -> list[float]:
    """Gaps that overlap the time from `start` to `end`."""
    return [
        later - earlier
        for trace in traces
        for earlier, later in pairwise(trace.times)
        if later > start and earlier < end
    ]


async def compare(command: Command, work: Interference, cases: Sequence[str]) -> int:
    result = command.result({"cases": cases})
    rounds = Rounds(result.not_run)
    try:
        await rounds.open(command.makers())
        await rounds.warm_up(lambda side: work.measure(side, ARRIVAL, "warm-up"))
        result.measurements = await rounds.measure(cases, command.options.rounds, work.measure)
    finally:
        await rounds.close()
    return command.finish(result, [plain_table(result)])


def main(arguments: Sequence[str] | None = None) -> int:
    command = Command("interference", __doc__, SIDES)
    options = command.read(arguments)
    sizes = Sizes(16, 24, 8, 2, 600, 256) if options.quick else Sizes()
    cases = [ARRIVAL, LONG_PROMPT]
    return asyncio.run(compare(command, Interference(command.shape, sizes), cases))


if __name__ == "__main__":
    sys.exit(main())
