"""Throughput and latency of the engine against its peers: prompts of 128 to 512 random tokens, 64
new ones, greedy, so many requests at a time as the case says."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence

from benchmarks.agreement import FirstAnswers, Oracle
from benchmarks.command import Command
from benchmarks.model import Shape, make
from benchmarks.result import Agreement
from benchmarks.rounds import Rounds
from benchmarks.sides.side import Side
from benchmarks.tables import FIGURES, table
from benchmarks.trace import figures
from benchmarks.workload import Request, Source

SIDES = (
    "ours",
    "ours-lmql-client",
    "upstream",
    "generate",
    "continuous-batching",
    "floor",
    "packed-floor",
)
REQUESTS = {1: 8, 8: 32, 32: 64}
"""How many are answered with so many streams."""
LENGTHS = (128, 512)
"""Of the prompts, the shortest and the longest."""
NEW = 64
"""Tokens of each answer."""


class EngineWork:
    """The batches, and the first round's answers for the correctness guard."""

    def __init__(self, shape: Shape, lengths: tuple[int, int], new: int, most: int) -> None:
        self._shape = shape
        self._lengths = lengths
        self._new = new
        self._most = most
        self._first = FirstAnswers()

    def requests(self, case: str, number: int | str) -> Sequence[Request]:
        """Other prompts in every round: none is answered from a cache."""
        count = min(REQUESTS.get(int(case), 2 * int(case)), self._most)
        source = Source(self._shape.vocabulary, "engine", case, number)
        return source.requests(count, self._lengths, self._new)

    async def measure(self, side: Side, case: str, number: int) -> Mapping[str, float]:
        requests = self.requests(case, number)
        batch = await side.batch(requests, int(case))
        if number == 0:
            self._first.keep(side, requests, batch)
        return figures(batch.traces, batch.wall)

    def agreements(self) -> dict[str, Agreement]:
        return self._first.check(Oracle(make(self._shape)))


async def compare(command: Command, work: EngineWork, cases: Sequence[str]) -> int:
    result = command.result({"streams": cases})
    rounds = Rounds(result.not_run)
    try:
        await rounds.open(command.makers())
        for case in cases:
            requests = work.requests(case, "warm-up")[: int(case)]
            await rounds.warm_up(lambda side, r=requests, c=case: side.batch(r, int(c)))
        result.measurements = await rounds.measure(cases, command.options.rounds, work.measure)
    finally:
        await rounds.close()
    result.agreement = work.agreements()
    return command.finish(result, [table(result, figure) for figure in FIGURES["engine"]])


def main(arguments: Sequence[str] | None = None) -> int:
    command = Command("engine", __doc__, SIDES)
    command.parser.add_argument("--streams", default="1,8,32", help="(%(default)s)")
    options = command.read(arguments)
    cases = options.streams.split(",")
    if options.quick:
        work = EngineWork(command.shape, (8, 24), 6, 4)
    else:
        work = EngineWork(command.shape, LENGTHS, NEW, max(REQUESTS.values()))
    return asyncio.run(compare(command, work, cases))


if __name__ == "__main__":
    sys.exit(main())
