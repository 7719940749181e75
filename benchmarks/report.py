"""Put the tables of benchmarks/results/*.json, and the plot, into docs/benchmarks.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command import RESULTS
from benchmarks.machine import ROOT
from benchmarks.plot import draw
from benchmarks.result import Result
from benchmarks.tables import FIGURES, agreement_table, plain_table, table
from benchmarks.traffic_tables import traffic_tables

DOCUMENT = ROOT / "docs/benchmarks.md"
BEGIN = "<!-- Written by `python -m benchmarks.report`: do not edit -->"
END = "<!-- End of what the report writes -->"
ORDER = ("engine", "lmql_shaped", "interference", "memory", "gpu", "traffic")


def section(result: Result) -> str:
    """One comparison: machine, tables, and what the correctness guard found."""
    machine = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    changed = " with local changes" if machine["changed_files"] else ""
    parts = [
        f"### {result.comparison}, {result.dtype}",
        f"{result.started}; {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, GPU: {machine['gpu'] or 'none'}. "
        f"Model {result.model['name']}, {result.settings['rounds']} rounds. {versions}, "
        f"Python {machine['python']}. Commit {str(machine['commit'])[:12]}{changed}.",
    ]
    figures = FIGURES.get(result.comparison)
    if result.comparison == "traffic":
        parts += traffic_tables(result)
    elif figures is None or not result.measurements:
        parts.append(plain_table(result))
    else:
        parts += [table(result, figure) for figure in figures]
    if result.comparison == "engine" and result.dtype == "float32":
        parts.append(f"![Throughput and latency against streams]({DOCUMENT.stem}.png)")
    if result.agreement:
        parts += ["**Correctness guard**", agreement_table(result)]
    return "\n\n".join(parts)


def write(results: Sequence[Result], document: Path) -> None:
    """Replace what stands between the marks of `document`. Raises ValueError without marks."""
    text = document.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{document} must hold the lines {BEGIN!r} and {END!r} once each")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    sections = [section(result) for result in _in_order(results)]
    document.write_text(BEGIN.join([before, "\n\n" + "\n\n".join(sections) + "\n\n"]) + END + after)


def _in_order(results: Sequence[Result]) -> list[Result]:
    """By comparison and dtype; of the same one on several machines the newest first."""
    newest_first = sorted(results, key=lambda result: result.started, reverse=True)
    return sorted(
        newest_first,
        key=lambda result: (ORDER.index(result.comparison), result.dtype != "float32"),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder (%(default)s)")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="(%(default)s)")
    options = parser.parse_args(arguments)
    results = [Result.load(path) for path in sorted(options.results.glob("*.json"))]
    if not results:
        print(f"no results in {options.results}: run a comparison first", file=sys.stderr)
        return 1
    write(results, options.document)
    print(f"written: {options.document}")
    drawn = [each for each in results if each.comparison == "engine" and each.measurements]
    if drawn:
        path = options.document.with_suffix(".png")
        try:
            # That with most peers; max takes the first of equals, the newest in float32.
            draw(max(_in_order(drawn), key=lambda result: len(result.sides())), path)
        except ImportError:
            print("NO PLOT: matplotlib is missing (pip install 'lmtp-replicate[bench]')")
            return 1
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
