"""What a comparison leaves: one JSON file with all that the tables and the plot are made of."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.statistics import Ratio, ratio

RATES = frozenset({"tokens_per_s"})
"""Figures of which more is better; all others are seconds or bytes."""


class Measurement(BaseModel):
    """One side, one case, one round. Figures end in their unit: `_s` seconds, `_bytes`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    case: str
    side: str
    round: int = Field(ge=0)
    figures: dict[str, float]


class Agreement(BaseModel):
    """How a side's answers of the first round compare with one-by-one forwards of the plain model
    (see `benchmarks.agreement`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int = Field(ge=0)
    near_ties: int = Field(ge=0)
    wrong: int = Field(ge=0)
    largest_gap: float = Field(ge=0)
    scores: int = Field(default=0, ge=0)
    largest_score_error: float = Field(default=0.0, ge=0)
    wrong_scores: int = Field(default=0, ge=0)


class Result(BaseModel):
    """`not_run`: why, by side; what is absent from both was no part of the comparison."""

    model_config = ConfigDict(extra="forbid")

    comparison: str
    started: str
    machine: dict[str, Any]
    model: dict[str, Any]
    dtype: str
    settings: dict[str, Any]
    measurements: list[Measurement] = []
    not_run: dict[str, str] = {}
    agreement: dict[str, Agreement] = {}

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Result:
        return cls.model_validate_json(path.read_text())

    def sides(self) -> list[str]:
        """Sides that were measured, in the order they were."""
        return list(dict.fromkeys(each.side for each in self.measurements))

    def cases(self) -> list[str]:
        return list(dict.fromkeys(each.case for each in self.measurements))

    def values(self, side: str, case: str, figure: str) -> dict[int, float]:
        """By round."""
        return {
            each.round: each.figures[figure]
            for each in self.measurements
            if (each.side, each.case) == (side, case) and figure in each.figures
        }

    def median(self, side: str, case: str, figure: str) -> float | None:
        values = self.values(side, case, figure)
        return median(values.values()) if values else None

    def advantage(self, ours: str, other: str, case: str, figure: str) -> Ratio | None:
        """How many times better `ours` is: above 1 is faster, or smaller. Over the rounds that
        both have done."""
        mine, theirs = (self.values(side, case, figure) for side in (ours, other))
        rounds = sorted(mine.keys() & theirs.keys())
        if not rounds:
            return None
        first, second = (mine, theirs) if figure in RATES else (theirs, mine)
        return ratio([first[number] for number in rounds], [second[number] for number in rounds])
