"""A side without a network: a worker process that answers jobs (see `benchmarks.workers.jobs`)."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.sides.process import SideProcess
from benchmarks.sides.side import Batch, ChainAnswer, FanOutAnswer, SideError
from benchmarks.trace import Trace
from benchmarks.workload import Chain, FanOut, Request

WORKERS = Path(__file__).parents[1] / "workers"
JOB_SECONDS = 1800


class WorkerSide:
    """`script` of the workers, with its arguments, run by `python`."""

    def __init__(
        self,
        name: str,
        script: str,
        arguments: Sequence[str],
        logs: Path,
        python: Path = Path(sys.executable),
    ) -> None:
        self.name = name
        self._log = logs / f"{name}.log"
        self._process = SideProcess([str(python), str(WORKERS / script), *arguments], self._log)

    async def open(self) -> None:
        await self._process.start(answers=True)
        await self._read()

    async def close(self) -> None:
        await self._process.stop()

    async def batch(self, requests: Sequence[Request], streams: int) -> Batch:
        answer = await self._ask(
            "batch",
            prompts=[request.prompt for request in requests],
            max_tokens=requests[0].max_tokens,
            streams=streams,
        )
        return Batch([Trace(**trace) for trace in answer["traces"]], answer["wall"])

    async def chain(self, chain: Chain) -> ChainAnswer:
        fields = asdict(chain) | {"masks": [(mask.ids, mask.is_whitelist) for mask in chain.masks]}
        return ChainAnswer(**await self._ask("chain", **fields))

    async def fan_out(self, fan_out: FanOut) -> FanOutAnswer:
        return FanOutAnswer(**await self._ask("fan_out", **asdict(fan_out)))

    async def _ask(self, job: str, **arguments: Any) -> dict[str, Any]:
        pipe = self._process.process.stdin
        assert pipe is not None
        pipe.write(json.dumps({"job": job, "arguments": arguments}).encode() + b"\n")
        await pipe.drain()
        return await self._read()

    async def _read(self) -> dict[str, Any]:
        output = self._process.process.stdout
        assert output is not None
        try:
            line = await asyncio.wait_for(output.readline(), JOB_SECONDS)
        except TimeoutError:
            raise SideError(f"{self.name} does not answer; see {self._log}") from None
        if not line:
            raise SideError(f"{self.name} has ended; see {self._log}")
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise SideError(f"{self.name} answered {line[:80]!r}; see {self._log}") from None
        if "error" in answer:
            raise SideError(f"{self.name}: {answer['error']}; see {self._log}")
        return answer
