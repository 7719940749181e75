"""Results as Markdown tables, for the terminal and for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.result import RATES, Result
from benchmarks.sides.catalog import OURS
from benchmarks.statistics import Ratio

TITLES = {
    "tokens_per_s": "Throughput, generated tokens/s",
    "ttft_p50_s": "Time to first token, p50, ms",
    "ttft_p95_s": "Time to first token, p95, ms",
    "itl_p50_s": "Inter-token latency, p50, ms",
    "itl_p95_s": "Inter-token latency, p95, ms",
    "wall_s": "Seconds for the whole case",
    "op_p50_s": "One op (of scores: one round of three), p50, ms",
}

FIGURES = {
    "engine": ("tokens_per_s", "ttft_p50_s", "ttft_p95_s", "itl_p50_s", "itl_p95_s"),
    "lmql_shaped": ("wall_s", "op_p50_s"),
}
"""By comparison, what has a table of its own; other comparisons have one with all figures."""


def table(result: Result, figure: str) -> str:
    """One row a side, one column a case: the median and, in brackets, how many times better ours
    is, with the range over the rounds."""
    cases = result.cases()
    lines = [
        f"**{TITLES[figure]}**",
        "",
        _row(["", *cases]),
        _row(["---"] * (len(cases) + 1)),
    ]
    lines += [
        _row([side, *(_cell(result, side, case, figure) for case in cases)])
        for side in result.sides()
    ]
    lines += [
        _row([side, f"not run: {why}", *[""] * (len(cases) - 1)])
        for side, why in result.not_run.items()
    ]
    return "\n".join(lines)


def plain_table(result: Result) -> str:
    """One row a side and case, one column a figure: medians."""
    figures = list(dict.fromkeys(name for each in result.measurements for name in each.figures))
    lines = [_row(["side", "case", *figures]), _row(["---"] * (len(figures) + 2))]
    for side in result.sides():
        for case in result.cases():
            medians = [result.median(side, case, figure) for figure in figures]
            if any(value is not None for value in medians):
                lines.append(_row([side, case, *map(_number, medians)]))
    empty = [""] * max(0, len(figures) - 1)
    lines += [_row([side, f"not run: {why}", *empty]) for side, why in result.not_run.items()]
    return "\n".join(lines)


def agreement_table(result: Result) -> str:
    """What the correctness guard found, by side."""
    lines = [
        _row(["side", "tokens checked", "near ties", "wrong", "scores checked", "largest error"]),
        _row(["---"] * 6),
    ]
    for side, found in result.agreement.items():
        error = f"{found.largest_score_error:.1e}" if found.scores else "-"
        wrong = found.wrong + found.wrong_scores
        lines.append(
            _row(
                [
                    side,
                    str(found.tokens),
                    str(found.near_ties),
                    str(wrong),
                    str(found.scores),
                    error,
                ]
            )
        )
    return "\n".join(lines)


def _cell(result: Result, side: str, case: str, figure: str) -> str:
    value = result.median(side, case, figure)
    if value is None:
        return "-"
    is_milliseconds = figure not in RATES and figure != "wall_s"
    text = _number(value * 1000 if is_milliseconds else value)
    better = None if side == OURS else result.advantage(OURS, side, case, figure)
    return text if better is None else f"{text} ({_ratio(better)})"


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.value:.2f}x, {ratio.low:.2f} to {ratio.high:.2f}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if abs(value) >= 1e6:
        return f"{value / 2**20:,.0f} Mi"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
