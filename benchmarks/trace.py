"""When the tokens of a request came, and the figures made of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from benchmarks.statistics import percentile


@dataclass(slots=True)
class Trace:
    """One answered request: `tokens`, and when each came. All times in seconds on one clock."""

    submitted: float
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    @property
    def first_token_seconds(self) -> float:
        return self.times[0] - self.submitted

    @property
    def gaps(self) -> list[float]:
        """Seconds between neighbouring tokens."""
        return [later - earlier for earlier, later in pairwise(self.times)]


def figures(traces: Sequence[Trace], wall: float) -> dict[str, float]:
    """Throughput (generated tokens per second of `wall`) and latencies (seconds)."""
    first = [trace.first_token_seconds for trace in traces]
    gaps = [gap for trace in traces for gap in trace.gaps]
    return {
        "wall_s": wall,
        "tokens": sum(len(trace.tokens) for trace in traces),
        "tokens_per_s": sum(len(trace.tokens) for trace in traces) / wall,
        "ttft_p50_s": percentile(first, 0.5),
        "ttft_p95_s": percentile(first, 0.95),
        **gap_figures(gaps),
    }


def gap_figures(gaps: Sequence[float]) -> dict[str, float]:
    """Inter-token latency; nothing where no stream had two tokens."""
    if not gaps:
        return {}
    return {"itl_p50_s": percentile(gaps, 0.5), "itl_p95_s": percentile(gaps, 0.95)}
