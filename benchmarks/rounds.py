"""Sides that take turns: A B A B, so that what the machine does meanwhile meets all of them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import perf_counter

from benchmarks.result import Measurement
from benchmarks.sides.side import Side, SideError

log = logging.getLogger(__name__)

Measure = Callable[[Side, str, int], Awaitable[Mapping[str, float]]]
"""(side, case, round) to figures."""


class Rounds:
    """Opens sides, has them measured in turn, and closes them. A side that fails is out, with its
    reason in `not_run`; the others go on."""

    def __init__(self, not_run: dict[str, str]) -> None:
        self._sides: list[Side] = []
        self.not_run = not_run

    async def open(self, makers: Mapping[str, Callable[[], Side]]) -> None:
        """Make and start the sides, one after another."""
        for name, make in makers.items():
            try:
                side = make()
            except Exception as error:
                self._drop(name, error)
                continue
            self._sides.append(side)
            try:
                await side.open()
            except (SideError, OSError) as error:
                await self._leave(side, error)

    async def close(self) -> None:
        for side in self._sides:
            await side.close()

    async def warm_up(self, run: Callable[[Side], Awaitable[object]]) -> None:
        """Have each side do some work whose time does not count."""
        for side in list(self._sides):
            try:
                await run(side)
            except (SideError, ExceptionGroup) as error:
                await self._leave(side, error)

    async def measure(
        self, cases: Sequence[str], rounds: int, measure: Measure
    ) -> list[Measurement]:
        """Case by case; in each, `rounds` times all sides in turn."""
        measurements = []
        for case in cases:
            for number in range(rounds):
                for side in list(self._sides):
                    began = perf_counter()
                    try:
                        figures = dict(await measure(side, case, number))
                    except (SideError, ExceptionGroup) as error:
                        await self._leave(side, error)
                        continue
                    seconds = perf_counter() - began
                    log.info("%s, round %d, %s: %.1f s", case, number + 1, side.name, seconds)
                    measurements.append(
                        Measurement(case=case, side=side.name, round=number, figures=figures)
                    )
        return measurements

    async def _leave(self, side: Side, error: Exception) -> None:
        self._sides.remove(side)
        self._drop(side.name, error)
        await side.close()

    def _drop(self, name: str, error: Exception) -> None:
        if isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        self.not_run[name] = f"failed: {error}"
        log.warning("%s is out: %s", name, error)
