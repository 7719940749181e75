"""A process that runs LMQL queries (see `benchmarks.workers.query_worker`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.sides.worker import WorkerSide


@dataclass(frozen=True, slots=True)
class Answered:
    """variables: of each result, as text. wall: seconds; None where no answer came in time."""

    variables: tuple[str, ...] = ()
    wall: float | None = None


class LmqlSide(WorkerSide):
    """`name` says which client: "ours" or "upstream"."""

    def __init__(self, name: str, gateway: str, endpoint: str, tokenizer: Path, logs: Path) -> None:
        arguments = [name, gateway, endpoint, str(tokenizer)]
        super().__init__(name, "query_worker.py", arguments, logs)

    async def query(self, codes: Sequence[str], patience: float) -> Answered:
        """Run `codes` at once. Raises SideError when the query fails."""
        answer = await self._ask("query", codes=list(codes), patience=patience)
        if "timed_out" in answer:
            return Answered()
        return Answered(tuple(answer["variables"]), answer["wall"])
