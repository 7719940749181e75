"""What the commands of the comparisons have in common: options, result, exit status."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from benchmarks.machine import facts
from benchmarks.model import BENCHMARK, CACHE, TINY, Shape, describe, make
from benchmarks.result import Result
from benchmarks.sides.catalog import MAKERS, OURS, PEERS, why_not
from benchmarks.sides.side import Side
from benchmarks.tables import agreement_table

RESULTS = Path(__file__).parent / "results"


class Command:
    """The options of one comparison, and what follows from them."""

    def __init__(
        self, comparison: str, description: str | None, sides: Sequence[str], *, rounds: int = 5
    ) -> None:
        self.comparison = comparison
        self._sides = sides
        self.parser = argparse.ArgumentParser(
            prog=f"python -m benchmarks.{comparison}", description=description
        )
        add = self.parser.add_argument
        add("--rounds", type=int, default=rounds, help="of every side in turn (%(default)s)")
        add("--dtype", choices=["float32", "bfloat16"], default="float32", help="(%(default)s)")
        add("--sides", default=",".join(sides), help="(%(default)s)")
        add(
            "--peer",
            action="append",
            default=[],
            choices=PEERS,
            dest="peers",
            help="run this one too; made ready in a venv of its own, which takes minutes",
        )
        add("--output", type=Path, help="JSON file (benchmarks/results/COMPARISON-DTYPE.json)")
        add("--quick", action="store_true", help="a tiny model and tiny work: only a try")

    def read(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """The options. Also sets up what is said on standard error."""
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        logging.getLogger("aiohttp").setLevel(logging.WARNING)
        self.options = self.parser.parse_args(arguments)
        self.options.sides = self.options.sides.split(",")
        unknown = [name for name in self.options.sides if name not in self._sides]
        if unknown:
            self.parser.error(f"unknown side {unknown[0]!r}; known are {', '.join(self._sides)}")
        if self.options.rounds < 1:
            self.parser.error("--rounds must be at least 1")
        return self.options

    @property
    def shape(self) -> Shape:
        return TINY if self.options.quick else BENCHMARK

    def result(self, settings: dict[str, object]) -> Result:
        """An empty one; sides left out are named with the reason."""
        left_out = [name for name in self._sides if name not in self.options.sides]
        not_run = dict.fromkeys(left_out, "left out by --sides")
        if "generate" in self._sides:  # a comparison that other engines can take part in
            not_run |= {peer: why_not(peer) for peer in PEERS if peer not in self.options.peers}
        return Result(
            comparison=self.comparison,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=facts(),
            model=describe(self.shape),
            dtype=self.options.dtype,
            settings={"rounds": self.options.rounds, "quick": self.options.quick, **settings},
            not_run=not_run,
        )

    def makers(self) -> dict[str, Callable[[], Side]]:
        """How the sides that were asked for are made. The model is made here, at the first call."""
        kind = "quick" if self.options.quick else self.options.dtype
        folder, logs = make(self.shape), CACHE / "logs" / f"{self.comparison}-{kind}"
        return {
            name: partial(MAKERS[name], folder, self.options.dtype, logs)
            for name in [*self.options.sides, *self.options.peers]
        }

    def finish(self, result: Result, tables: Sequence[str]) -> int:
        """Save and print; 1 if our own answers are wrong, else 0."""
        name = f"{self.comparison}-{self.options.dtype}.json"
        folder = CACHE / "quick" if self.options.quick else RESULTS
        path = self.options.output or folder / name
        result.save(path)
        print("\n\n".join(tables))
        if result.agreement:
            print(f"\n{agreement_table(result)}")
        print(f"\nwritten: {path}")
        ours = [found for side, found in result.agreement.items() if side.startswith(OURS)]
        is_wrong = any(found.wrong or found.wrong_scores for found in ours)
        if is_wrong and self.options.dtype == "float32":
            print("OUR ANSWERS ARE WRONG: these figures count as zero", file=sys.stderr)
            return 1
        return 0
