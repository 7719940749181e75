"""The traffic LMQL makes: many short dependent ops with a growing shared prefix, masks, and scores
of several options after one prefix."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.agreement import Answer, Oracle, chain_answers, with_scores
from benchmarks.command import Command
from benchmarks.model import Shape, make
from benchmarks.result import Agreement
from benchmarks.rounds import Rounds
from benchmarks.sides.catalog import QUERY_SIDES
from benchmarks.sides.side import FanOutAnswer, QuerySide
from benchmarks.statistics import percentile
from benchmarks.tables import FIGURES, table
from benchmarks.workload import Chain, FanOut, Source

CHAINS = ("growing prefix", "whitelist", "blacklist")
FAN_OUTS = ("scores, cold", "scores, warm")


@dataclass(frozen=True, slots=True)
class Sizes:
    prompt: int = 400
    ops: int = 40
    grown: int = 8
    """Tokens of each op of the growing prefix."""
    allowed: int = 64
    score_rounds: int = 8
    prefix: int = 500
    options: tuple[int, ...] = (2, 3, 4)


class QueryWork:
    """The cases, and the first round's answers for the correctness guard."""

    def __init__(self, shape: Shape, sizes: Sizes) -> None:
        self._shape = shape
        self._sizes = sizes
        self._answers: dict[str, list[Answer]] = {}
        self._scores: dict[str, list[FanOutAnswer]] = {}

    def chain(self, case: str, number: object) -> Chain:
        """A few masks come again and again, as a query's do."""
        sizes, source = self._sizes, Source(self._shape.vocabulary, case, number)
        prompt = source.tokens(sizes.prompt)
        if case == "growing prefix":
            return Chain(prompt, sizes.ops, sizes.grown)
        if case == "whitelist":
            masks = [source.mask(sizes.allowed, is_whitelist=True) for _ in range(4)]
        else:
            half = self._shape.vocabulary // 2
            masks = [source.mask(half, is_whitelist=False) for _ in range(2)]
        return Chain(prompt, sizes.ops, 1, tuple(masks))

    def fan_out(self, case: str, number: object) -> FanOut:
        sizes, source = self._sizes, Source(self._shape.vocabulary, case, number)
        generated = sizes.grown if case == "scores, warm" else 0
        length = sizes.prefix - generated
        prefixes = tuple(source.tokens(length) for _ in range(sizes.score_rounds))
        return FanOut(prefixes, source.options(sizes.options), generated)

    async def measure(self, side: QuerySide, case: str, number: int) -> Mapping[str, float]:
        if case in CHAINS:
            chain = self.chain(case, number)
            answer = await side.chain(chain)
            if number == 0:
                kept = self._answers.setdefault(side.name, [])
                kept += chain_answers(chain, answer)
            return _figures(answer.seconds)
        scored = await side.fan_out(self.fan_out(case, number))
        if number == 0:
            self._scores.setdefault(side.name, []).append(scored)
        return _figures(scored.seconds)

    async def warm_up(self, side: QuerySide) -> None:
        for case in CHAINS:
            chain = self.chain(case, "warm-up")
            await side.chain(Chain(chain.prompt, 2, chain.max_tokens, chain.masks))
        await side.fan_out(self.fan_out("scores, cold", "warm-up"))

    def agreements(self, reference: str) -> dict[str, Agreement]:
        """Scores are compared with those of the side `reference`, if it ran."""
        oracle = Oracle(make(self._shape))
        found = {side: oracle.check(answers) for side, answers in self._answers.items()}
        complete = self._scores.get(reference, [])
        for side, scores in self._scores.items():
            if len(scores) == len(complete):
                found[side] = with_scores(found[side], scores, complete)
        return found


def _figures(seconds: Sequence[float]) -> Mapping[str, float]:
    """Of the measured parts: chains by op, fan-outs by round."""
    return {
        "wall_s": sum(seconds),
        "op_p50_s": percentile(seconds, 0.5),
        "op_p95_s": percentile(seconds, 0.95),
    }


async def compare(command: Command, work: QueryWork) -> int:
    result = command.result({"cases": [*CHAINS, *FAN_OUTS]})
    rounds = Rounds(result.not_run)
    try:
        await rounds.open(command.makers())
        await rounds.warm_up(work.warm_up)
        result.measurements = await rounds.measure(
            [*CHAINS, *FAN_OUTS], command.options.rounds, work.measure
        )
    finally:
        await rounds.close()
    result.agreement = work.agreements("floor")
    return command.finish(result, [table(result, figure) for figure in FIGURES["lmql_shaped"]])


def main(arguments: Sequence[str] | None = None) -> int:
    command = Command("lmql_shaped", __doc__, QUERY_SIDES)
    options = command.read(arguments)
    sizes = Sizes(24, 3, 2, 8, 2, 24) if options.quick else Sizes()
    return asyncio.run(compare(command, QueryWork(command.shape, sizes)))


if __name__ == "__main__":
    sys.exit(main())
