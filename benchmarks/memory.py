"""Memory of the servers: after loading, and what streams add to it (Linux, CPU)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.command import Command
from benchmarks.model import Shape
from benchmarks.rounds import Rounds
from benchmarks.sides.websocket import WebSocketSide
from benchmarks.tables import plain_table
from benchmarks.workload import Request, Source

SIDES = ("ours", "upstream")
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Sizes:
    streams: int = 32
    prompt: int = 448
    new: int = 64


class Memory:
    """`weight_bytes`: of one copy of the model."""

    def __init__(self, shape: Shape, dtype: str, sizes: Sizes) -> None:
        self._shape = shape
        self._element_bytes = ELEMENT_BYTES[dtype]
        self._sizes = sizes

    async def warm_up(self, side: WebSocketSide) -> None:
        """One stream, whole: buffers that do not depend on their number are there afterwards."""
        await side.batch(self._requests(1, "warm-up"), 1)

    async def measure(self, side: WebSocketSide, case: str, number: int) -> Mapping[str, float]:
        before = side.memory()
        side.reset_peak()
        await side.batch(self._requests(int(case), number), int(case))
        grown = side.memory()["peak_bytes"] - before["resident_bytes"]
        tokens = int(case) * (self._sizes.prompt + self._sizes.new)
        token_bytes = self._shape.kv_elements_per_token * self._element_bytes
        weights = self._shape.parameters * self._element_bytes
        return {
            "before_anonymous_bytes": before["anonymous_bytes"],
            "before_over_weights": before["anonymous_bytes"] / weights,
            "load_peak_bytes": before["peak_bytes"],
            "grown_bytes": grown,
            "grown_bytes_per_token": grown / tokens,
            "kv_bytes_per_token": token_bytes,
            "grown_over_kv": grown / tokens / token_bytes,
        }

    def _requests(self, streams: int, number: object) -> list[Request]:
        source = Source(self._shape.vocabulary, "memory", streams, number)
        sizes = self._sizes
        return [Request(source.tokens(sizes.prompt), sizes.new) for _ in range(streams)]


async def compare(command: Command, work: Memory, cases: Sequence[str]) -> int:
    result = command.result({"streams": cases})
    rounds = Rounds(result.not_run)
    try:
        await rounds.open(command.makers())
        await rounds.warm_up(work.warm_up)
        result.measurements = await rounds.measure(cases, command.options.rounds, work.measure)
    finally:
        await rounds.close()
    return command.finish(result, [plain_table(result)])


def main(arguments: Sequence[str] | None = None) -> int:
    # Memory that a first round took is there for a second one: only a first round tells.
    command = Command("memory", __doc__, SIDES, rounds=1)
    options = command.read(arguments)
    sizes = Sizes(2, 24, 6) if options.quick else Sizes()
    work = Memory(command.shape, options.dtype, sizes)
    return asyncio.run(compare(command, work, [str(sizes.streams)]))


if __name__ == "__main__":
    sys.exit(main())
