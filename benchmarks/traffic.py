"""What real LMQL queries cost on Replicate: predictions, tokens, bytes and seconds, with LMQL's own
Replicate client and with ours, on a Replicate of this machine that is as slow as the real one."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from benchmarks.command import RESULTS
from benchmarks.machine import ROOT, facts
from benchmarks.meter import Delays, Meter
from benchmarks.model import CACHE
from benchmarks.queries import QUERIES, Query
from benchmarks.result import Result
from benchmarks.rote.model import TOKENIZER
from benchmarks.rote.work import make_work_directory
from benchmarks.rounds import Rounds
from benchmarks.sides.catalog import OURS, UPSTREAM
from benchmarks.sides.lmql import LmqlSide
from benchmarks.traffic_tables import SLOW, traffic_tables

DELAYS = Delays(create=0.15, stream=0.05, token=0.02)
SLOWER = 3
PATIENCE = 60.0
"""Seconds after which a query is given up."""
WARM_UP = ('argmax "The sky[X]" where len(TOKENS(X)) < 3',)
log = logging.getLogger(__name__)


class Work:
    """One setting's measurements, and the answers, which must not depend on the client."""

    def __init__(self, meter: Meter, queries: Sequence[Query], suffix: str) -> None:
        self._meter = meter
        self._by_case = {query.name + suffix: query for query in queries}
        self.answers: dict[str, set[tuple[str, ...]]] = {}

    @property
    def cases(self) -> list[str]:
        return list(self._by_case)

    async def warm_up(self, side: LmqlSide) -> None:
        self._meter.begin()
        await side.query(WARM_UP, PATIENCE)
        await self._meter.traffic()

    async def measure(self, side: LmqlSide, case: str, _: int) -> Mapping[str, float]:
        """A query that does not end has figures too, but no time."""
        query = self._by_case[case]
        self._meter.begin()
        answered = await side.query(query.codes, PATIENCE)
        traffic = await self._meter.traffic()
        figures: dict[str, float] = {
            "predictions": traffic.predictions,
            "tokens": traffic.tokens,
            "bytes": traffic.bytes,
            "waves": traffic.waves,
        }
        if answered.wall is None:
            log.warning("%s, %s: no answer in %.0f s", case, side.name, PATIENCE)
            return figures
        if not query.is_random:
            self.answers.setdefault(case, set()).add(answered.variables)
        return figures | {"wall_s": answered.wall}


async def compare(options: argparse.Namespace) -> Result:
    """Run it all."""
    queries = [query for query in QUERIES if query.name in options.queries]
    result = Result(
        comparison="traffic",
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=facts(),
        model={"name": "rote"},
        dtype="float32",
        settings={"rounds": options.rounds, "slow_rounds": options.slow_rounds},
    )
    for suffix, factor, rounds in (("", 1, options.rounds), (SLOW, SLOWER, options.slow_rounds)):
        if rounds:
            await _measure(result, queries, suffix, DELAYS.times(factor), rounds)
    return result


async def _measure(
    result: Result, queries: Sequence[Query], suffix: str, delays: Delays, count: int
) -> None:
    folder = CACHE / f"rote-{delays.token}"
    shutil.rmtree(folder, ignore_errors=True)
    make_work_directory(folder / "rote", step_seconds=delays.token)
    rounds = Rounds(result.not_run)
    async with Meter(folder, delays) as meter:
        os.environ["REPLICATE_API_TOKEN"] = meter.token
        work = Work(meter, queries, suffix)
        make = partial(
            LmqlSide,
            gateway=meter.url,
            endpoint="replicate:local/rote",
            tokenizer=TOKENIZER,
            logs=CACHE / "logs" / "traffic",
        )
        try:
            await rounds.open({name: partial(make, name) for name in (UPSTREAM, OURS)})
            await rounds.warm_up(work.warm_up)
            result.measurements += await rounds.measure(work.cases, count, work.measure)
        finally:
            await rounds.close()
    differing = [case for case, answers in work.answers.items() if len(answers) > 1]
    result.settings["differing_answers"] = [
        *result.settings.get("differing_answers", []),
        *differing,
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    names = [query.name for query in QUERIES]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traffic", description=__doc__)
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="of each client in turn (%(default)s)")
    add("--slow-rounds", type=int, default=1, help="the same, three times slower (%(default)s)")
    add("--queries", nargs="+", default=names, choices=names, metavar="NAME", help="only these")
    add("--output", type=Path, default=RESULTS / "traffic.json", help="JSON file (%(default)s)")
    options = parser.parse_args(arguments)
    # For the workers and for the Cog runtime; and LMQL keeps pickled tokenizers in its home.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    os.environ |= {"HOME": str(CACHE / "home"), "HF_HUB_OFFLINE": "1"}
    (CACHE / "home").mkdir(parents=True, exist_ok=True)
    result = asyncio.run(compare(options))
    result.save(options.output)
    print("\n\n".join(traffic_tables(result)))
    print(f"\nwritten: {options.output}")
    if result.settings["differing_answers"]:
        print(f"ANSWERS DIFFER: {result.settings['differing_answers']}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
