"""The traffic comparison as Markdown: a table a setting, one row a query, and their sum."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from benchmarks.result import Result
from benchmarks.sides.catalog import OURS, UPSTREAM
from benchmarks.statistics import ratio

SLOW = ", three times slower"
"""Ends the names of the cases of the second setting."""
COUNTS = ("predictions", "waves", "tokens", "bytes")


def traffic_tables(result: Result) -> list[str]:
    """Each cell: upstream's median, an arrow, ours."""
    slow = [case for case in result.cases() if case.endswith(SLOW)]
    fast = [case for case in result.cases() if case not in slow]
    titles = ("**As slow as Replicate**", "**Three times slower**")
    return [
        _table(result, title, cases)
        for title, cases in zip(titles, (fast, slow), strict=True)
        if cases
    ]


def _table(result: Result, title: str, cases: Sequence[str]) -> str:
    header = ["", *COUNTS, "seconds", "ours / upstream"]
    lines = [title, "", _row(header), _row(["---"] * len(header))]
    lines += [_row([case.removesuffix(SLOW), *_cells(result, [case])]) for case in cases]
    lines.append(_row(["**all**", *_cells(result, cases)]))
    lines += [_row([side, f"not run: {why}"]) for side, why in result.not_run.items()]
    return "\n".join(lines)


def _cells(result: Result, cases: Sequence[str]) -> list[str]:
    cells = []
    for figure in COUNTS:
        before, after = (_sums(result, side, cases, figure) for side in (UPSTREAM, OURS))
        cells.append(f"{_count(before)} → {_count(after)}")
    before, after = (_sums(result, side, cases, "wall_s") for side in (UPSTREAM, OURS))
    if len(before) != len(after) or not before:
        return [*cells, f"{_seconds(before)} → {_seconds(after)}", "-"]
    share = ratio(after, before)
    text = f"{share.value:.2f} ({share.low:.2f} to {share.high:.2f})"
    return [*cells, f"{_seconds(before)} → {_seconds(after)}", text]


def _sums(result: Result, side: str, cases: Sequence[str], figure: str) -> list[float]:
    """By round, over `cases`; only rounds that have the figure in all of them."""
    values = [result.values(side, case, figure) for case in cases]
    rounds = sorted(set.intersection(*(set(each) for each in values))) if values else []
    return [sum(each[number] for each in values) for number in rounds]


def _count(values: Sequence[float]) -> str:
    return f"{median(values):,.0f}" if values else "-"


def _seconds(values: Sequence[float]) -> str:
    if not values:
        return "no answer"
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
