"""A trace that LMTP_REPLICATE_TRACE has written (docs/trace.md), read back."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.statistics import percentile

log = logging.getLogger(__name__)


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True)


class Shared(_Line):
    """The first `tokens` tokens are those of `op`; the last `output` of them `op` generated."""

    op: int
    tokens: int
    output: int


class After(_Line):
    """`seconds` after `op` had delivered `tokens` tokens, or had ended."""

    op: int
    tokens: int
    end: bool
    seconds: float


class RecordedMask(_Line):
    """Equal masks have equal numbers; the others are sizes."""

    number: int
    allow: int | None = None
    deny: int
    add: int


class RecordedOp(_Line):
    """One op as a query asked for it. Ops of one `burst` were asked for at once."""

    t: float
    op: int
    burst: int
    query: int
    kind: str
    prompt: int
    shares: Shared | None = None
    after: After | None = None
    scored: int = 0
    max_tokens: int = 0
    top_logprobs: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    mask: RecordedMask | None = None

    @property
    def given(self) -> int:
        """Length of prompt and scored tokens together."""
        return self.prompt + self.scored


class RecordedEnd(_Line):
    """How an op ended; `first` and `last` say when its first and last token came."""

    t: float
    op: int
    how: str
    tokens: int
    first: float | None = None
    last: float | None = None


@dataclass
class Recording:
    """One process's part of a trace."""

    ops: dict[int, RecordedOp] = field(default_factory=dict)
    ends: dict[int, RecordedEnd] = field(default_factory=dict)
    predictions: int = 0

    @property
    def start(self) -> float:
        """When the first op was asked for."""
        return min(op.t for op in self.ops.values())

    def bursts(self) -> list[list[RecordedOp]]:
        """The ops by burst, in order."""
        found: dict[int, list[RecordedOp]] = {}
        for op in self.ops.values():
            found.setdefault(op.burst, []).append(op)
        return list(found.values())

    def figures(self) -> dict[str, float]:
        """What a replay is compared with."""
        firsts = [
            end.first - self.ops[number].t
            for number, end in self.ends.items()
            if end.first is not None
        ]
        return {
            "ops": len(self.ops),
            "tokens": sum(end.tokens for end in self.ends.values()),
            "predictions": self.predictions,
            "wall_s": max((end.t for end in self.ends.values()), default=self.start) - self.start,
            **first_token_figures(firsts),
        }


def first_token_figures(seconds: list[float]) -> dict[str, float]:
    """Time to first token; nothing where no token came."""
    if not seconds:
        return {}
    return {"ttft_p50_s": percentile(seconds, 0.5), "ttft_p95_s": percentile(seconds, 0.95)}


def load(path: Path, run: str | None = None) -> Recording:
    """The recording of the process called `run` in the file, by default the one with the most ops.

    Raises ValueError that says which line is wrong, or that there is nothing to replay.
    """
    lines = list(_lines(path))
    runs = Counter(line["run"] for line in lines if line["event"] == "op")
    if run is None and runs:
        run = runs.most_common(1)[0][0]
        if len(runs) > 1:
            log.info("%s holds %d runs; this is %s (--run)", path, len(runs), run)
    if run not in runs:
        raise ValueError(f"{path} holds no op" + (f" of a run {run!r}" if run else ""))
    recording = Recording()
    for number, line in enumerate(lines, 1):
        if line["run"] == run:
            try:
                _add(recording, line)
            except ValidationError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    return recording


def _add(recording: Recording, line: Mapping[str, Any]) -> None:
    match line["event"]:
        case "op":
            recording.ops[line["op"]] = RecordedOp.model_validate(line)
        case "end":
            recording.ends[line["op"]] = RecordedEnd.model_validate(line)
        case "prediction":
            recording.predictions += 1


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            line = json.loads(text)
            line["event"], line["run"]
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path}, line {number} is no line of a trace") from None
        yield line
