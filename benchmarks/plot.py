"""The plot: throughput and latency against streams, ours and the peers."""

from __future__ import annotations

from pathlib import Path

from benchmarks.result import Result
from benchmarks.sides.catalog import OURS

PANELS = (
    ("tokens_per_s", "generated tokens/s", 1),
    ("ttft_p95_s", "time to first token, p95, s", 1),
    ("itl_p95_s", "inter-token latency, p95, ms", 1000),
)


def draw(result: Result, path: Path) -> None:
    """Write the plot of an `engine` result. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(13, 4.2), layout="constrained")
    streams = [int(case) for case in result.cases()]
    for axis, (name, title, scale) in zip(axes, PANELS, strict=True):
        for side in result.sides():
            medians = [result.median(side, case, name) for case in result.cases()]
            points = [
                (count, value * scale)
                for count, value in zip(streams, medians, strict=True)
                if value is not None
            ]
            is_ours, is_floor = side == OURS, "floor" in side
            axis.plot(
                *zip(*points, strict=True),
                marker="o",
                label=side,
                linewidth=3 if is_ours else 1.5,
                linestyle="--" if is_floor else "-",
            )
        axis.set(title=title, xlabel="streams", xscale="log", yscale="log", xticks=streams)
        axis.set_xticklabels(map(str, streams))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    figure.suptitle(f"{result.model['name']}, {result.dtype}, {result.machine['cpu']}")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
