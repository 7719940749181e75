"""Ask an endpoint for what a trace has recorded, and compare: real traffic as a benchmark.

Record with LMTP_REPLICATE_TRACE=trace.jsonl. Prompts are of random ids that share what the recorded
ones shared; an op starts when what it depended on has come, after the same pause.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.machine import facts
from benchmarks.recording import RecordedOp, Recording, first_token_figures, load
from benchmarks.replayed import Ids, Replayed, ReplayedOp
from benchmarks.result import Measurement, Result
from benchmarks.tables import plain_table
from lmtp_replicate import LmtpReplicateError, connect, stats
from lmtp_replicate.client import Client, TokenStream

SAMPLING = ("temperature", "top_k", "top_p", "seed")
SAMPLING += ("repetition_penalty", "presence_penalty", "frequency_penalty")


class Replay:
    """One run of a recording. `connected` gives each query a client of its own."""

    def __init__(self, recording: Recording, replayed: Replayed, endpoint: str, model: str) -> None:
        self._recording = recording
        self._replayed = replayed
        self._clients = {
            query: connect(endpoint, model=model)
            for query in {op.query for op in recording.ops.values()}
        }

    async def run(self) -> dict[str, float]:
        """Ask for everything; the figures."""
        before, self._began = stats(), perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for burst in self._recording.bursts():
                tasks.create_task(self._run_burst(burst, tasks))
        wall = perf_counter() - self._began
        for client in self._clients.values():
            client.close()
        ops, cost = list(self._replayed.ops.values()), stats() - before
        return {
            "ops": len(ops),
            "tokens": sum(op.tokens for op in ops),
            "predictions": cost.predictions,
            "wall_s": wall,
            **first_token_figures([op.first - op.asked for op in ops if op.first is not None]),
            "failed_ops": sum(op.error is not None for op in ops),
            "received_tokens": cost.tokens_received,
            "sent_bytes": cost.bytes_sent,
            "received_bytes": cost.bytes_received,
        }

    async def _run_burst(self, burst: Sequence[RecordedOp], tasks: asyncio.TaskGroup) -> None:
        if await self._replayed.may_start(burst):
            await asyncio.sleep(min(op.after.seconds for op in burst if op.after is not None))
        else:
            due = self._began + burst[0].t - self._recording.start
            await asyncio.sleep(max(0.0, due - perf_counter()))
        for op in burst:  # all in one iteration of the loop, as they were
            tasks.create_task(self._run_op(op, self._replayed.begin(op)))

    async def _run_op(self, op: RecordedOp, replayed: ReplayedOp) -> None:
        stream = self._ask(self._clients[op.query], op, replayed)
        end = self._recording.ends.get(op.op)
        is_left = end is not None and end.how == "left"
        try:
            if end is not None and is_left and end.tokens == 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(end.t - op.t):
                        await anext(stream, None)
                return
            async for item in stream:
                replayed.take(item.token, is_generated=op.kind == "GENERATE")
                if end is not None and is_left and replayed.tokens == end.tokens:
                    await asyncio.sleep(end.t - (end.last or end.t))
                    break
        except LmtpReplicateError as error:
            replayed.error = str(error)
            logging.warning("op %d failed: %s", op.op, error)
        finally:
            stream.close()
            replayed.end()

    def _ask(self, client: Client, op: RecordedOp, replayed: ReplayedOp) -> TokenStream:
        prompt, scored = replayed.given[: op.prompt], replayed.given[op.prompt :]
        if op.kind == "SCORE":
            return client.score(prompt, scored)
        return client.generate(
            prompt,
            max_tokens=op.max_tokens,
            top_logprobs=op.top_logprobs,
            logit_bias=self._replayed.bias(op),
            **{name: getattr(op, name) for name in SAMPLING},
        )


async def measure(options: argparse.Namespace, recording: Recording) -> Result:
    """Replay `options.rounds` times, with other ids each time."""
    async with connect(options.endpoint, model=options.model) as client:
        info: Mapping[str, Any] = await client.model_info()
    result = Result(
        comparison="replay",
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=facts(),
        model={"name": info.get("model")},
        dtype=str(info.get("dtype")),
        settings={"rounds": options.rounds, "trace": options.trace.name},
    )
    case = options.trace.name
    figures = [("recorded", 0, recording.figures())]
    for number in range(options.rounds):
        ids = Ids(int(info.get("vocab_size") or 32_000), f"{options.seed}/{number}")
        replay = Replay(recording, Replayed(recording, ids), options.endpoint, options.model)
        figures.append(("replayed", number, await replay.run()))
    result.measurements += [
        Measurement(case=case, side=side, round=number, figures=found)
        for side, number, found in figures
    ]
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__)
    parser.add_argument("trace", type=Path, help="what LMTP_REPLICATE_TRACE has written")
    parser.add_argument(
        "--endpoint", required=True, help="replicate:ORG/MODEL, ws://HOST:PORT, ..."
    )
    parser.add_argument("--model", default="", help="its name, where the endpoint has none")
    parser.add_argument("--run", help="of several runs in the file (the one with the most ops)")
    parser.add_argument("--rounds", type=int, default=1, help="each with other ids (%(default)s)")
    parser.add_argument("--seed", default="replay", help="for the ids (%(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file (TRACE.replay.json)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        recording = load(options.trace, options.run)
        result = asyncio.run(measure(options, recording))
    except (OSError, ValueError, LmtpReplicateError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    path = options.output or options.trace.with_suffix(".replay.json")
    result.save(path)
    print(f"{plain_table(result)}\n\nwritten: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
