"""Decode on a GPU: a step at 1 stream against the time to read the weights once, and throughput at
32 and 64 streams, on a Llama-8B-shaped model with random weights, with decode steps recorded (CUDA
graphs) and without; LMQL's server beside them. The first round's tokens are held against the plain
model in float32."""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter

from benchmarks.agreement import BFLOAT16_TOLERANCE, FirstAnswers, Oracle
from benchmarks.command import Command
from benchmarks.model import CACHE, LLAMA_8B, TINY, Shape, describe, make
from benchmarks.rounds import Rounds
from benchmarks.sides.servers import OurServer, UpstreamServer
from benchmarks.sides.websocket import WebSocketSide
from benchmarks.tables import plain_table
from benchmarks.trace import figures
from benchmarks.workload import Source

SIDES = (
    "ours bf16",
    "ours bf16 graphs",
    "ours 8bit",
    "ours 4bit",
    "ours 4bit graphs",
    "upstream bf16",
)
LAYER_BYTES = {"bf16": 2.0, "8bit": 1.0, "4bit": 0.5625}
"""Bytes per weight of the layers' matrices. 4 bits have a float32 scale per 64 weights beside them.
Embeddings and the output head stay bf16."""
CASES = {"1": 1, "32": 32, "64": 64}
MOVED_BYTES = 4 << 30


def memory_bandwidth() -> float:
    """Bytes per second the device's memory moves: by a copy within it, which reads and writes all
    bytes, or by a sum, which only reads, as a decode step does; whichever is faster."""
    import torch

    source = torch.zeros(MOVED_BYTES // 4, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * MOVED_BYTES / _seconds(partial(target.copy_, source))
    read = MOVED_BYTES / _seconds(source.sum)
    del source, target
    torch.cuda.empty_cache()  # else this process would hold it while the servers' memory is sized
    return max(copied, read)


def _seconds(work: Callable[[], object]) -> float:
    """Of the device, to do `work`."""
    import torch

    times = []
    for _ in range(10):
        torch.cuda.synchronize()
        start = perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(perf_counter() - start)
    return statistics.median(times)


def step_bytes(shape: Shape, kind: str) -> float:
    """What a decode step must read at least: every matrix and the output head, once."""
    return shape.matrix_parameters * LAYER_BYTES[kind] + shape.head_parameters * 2


class GpuWork:
    def __init__(self, shape: Shape, bandwidth: float, lengths: tuple[int, int], new: int) -> None:
        self._shape = shape
        self._bandwidth = bandwidth
        self._lengths = lengths
        self._new = new
        self.first = FirstAnswers()

    async def warm_up(self, side: WebSocketSide) -> None:
        """Every number of streams is another shape, for which libraries choose kernels."""
        for case in CASES:
            await self.measure(side, case, "warm-up")

    async def measure(self, side: WebSocketSide, case: str, number: object) -> Mapping[str, float]:
        streams = CASES[case]
        source = Source(self._shape.vocabulary, "gpu", case, number)
        requests = source.requests(2 * streams, self._lengths, self._new)
        batch = await side.batch(requests, streams)
        if number == 0:
            self.first.keep(side, requests, batch)
        found = figures(batch.traces, batch.wall)
        if streams == 1:
            floor = step_bytes(self._shape, side.name.split()[1]) / self._bandwidth
            found |= {"floor_step_s": floor, "share_of_floor": floor / found["itl_p50_s"]}
        return found


async def compare(command: Command, shape: Shape) -> int:
    result = command.result({"streams": list(CASES)})
    result.model = describe(shape)
    bandwidth = memory_bandwidth()
    result.settings["bandwidth_bytes_per_s"] = bandwidth
    folder, logs = make(shape, "bfloat16"), CACHE / "logs/gpu"
    server = partial(OurServer, folder=folder, dtype="bfloat16", logs=logs)
    makers = {
        "ours bf16": partial(server, "ours bf16"),
        "ours bf16 graphs": partial(server, "ours bf16 graphs", has_decode_graphs=True),
        "ours 8bit": partial(server, "ours 8bit", quantize="8bit"),
        "ours 4bit": partial(server, "ours 4bit", quantize="4bit"),
        "ours 4bit graphs": partial(
            server, "ours 4bit graphs", quantize="4bit", has_decode_graphs=True
        ),
        "upstream bf16": partial(
            UpstreamServer, "upstream bf16", folder, "bfloat16", logs, cuda=True
        ),
    }
    quick = command.options.quick
    work = GpuWork(shape, bandwidth, (8, 24) if quick else (128, 512), 8 if quick else 128)
    # One after another: not all of them fit into one device's memory side by side.
    for name in command.options.sides:
        rounds = Rounds(result.not_run)
        try:
            await rounds.open({name: makers[name]})
            await rounds.warm_up(work.warm_up)
            result.measurements += await rounds.measure(
                list(CASES), command.options.rounds, work.measure
            )
        finally:
            await rounds.close()
    # Quantised weights are others than the oracle's: how far off they lead is told, not judged.
    result.agreement = work.first.check(Oracle(folder, _roomy_device(shape), BFLOAT16_TOLERANCE))
    return command.finish(result, [plain_table(result)])


def _roomy_device(shape: Shape) -> str:
    """Where the model in float32 has room."""
    import torch

    free, _total = torch.cuda.mem_get_info()
    return "cuda" if 5 * shape.parameters < free else "cpu"


def main(arguments: Sequence[str] | None = None) -> int:
    command = Command("gpu", __doc__, SIDES, rounds=3)
    options = command.read(arguments)
    options.dtype = "bfloat16"
    import torch

    if not torch.cuda.is_available():
        result = command.result({})
        result.not_run = dict.fromkeys(SIDES, "no CUDA device on this machine")
        print("NOT RUN: this comparison needs a CUDA device, and there is none.", file=sys.stderr)
        command.finish(result, [plain_table(result)])
        return 1
    return asyncio.run(compare(command, TINY if options.quick else LLAMA_8B))


if __name__ == "__main__":
    sys.exit(main())
