"""What happened, for `benchmarks.replay` and for bug reports, without text and without secrets.

Set LMTP_REPLICATE_TRACE to a file's name; docs/trace.md has the lines. No token id is written,
since ids are text: of prompts only lengths and what they share with earlier ops.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final
from weakref import WeakKeyDictionary

from lmtp_replicate.client.query import Query
from lmtp_replicate.client.sharing import SharedPrefixes
from lmtp_replicate.client.trace_file import VARIABLE, TraceFile
from lmtp_replicate.protocol.masks import Mask
from lmtp_replicate.protocol.messages import Generate, Sampling, Score, TokenItem

FORMAT: Final = 1
MOST_MASKS: Final = 2**16
"""When so many different ones were seen, all are forgotten, and would get new numbers."""


@dataclass(slots=True)
class _Arrival:
    """The newest thing that came: `tokens` of `op` so far, at `t`."""

    op: int
    tokens: int
    is_end: bool
    t: float


@dataclass(slots=True)
class _OpenOp:
    query: Query
    is_generate: bool
    tokens: int = 0
    first: float | None = None
    last: float | None = None
    source: str = "server"


class Trace:
    """All of a hub. Hub's thread only."""

    def __init__(self, file: TraceFile) -> None:
        self._file = file
        self._prefixes = SharedPrefixes()
        self._open: dict[int, _OpenOp] = {}
        self._newest: _Arrival | None = None
        self._newest_of: WeakKeyDictionary[Query, _Arrival] = WeakKeyDictionary()
        self._masks: dict[str, int] = {}
        self._mask_numbers = itertools.count(1)
        self._bursts = itertools.count(1)
        self._predictions = itertools.count(1)
        file.write("start", {"format": FORMAT})

    @classmethod
    def from_environment(cls) -> Trace | None:
        """The trace that LMTP_REPLICATE_TRACE asks for, if it does."""
        path = os.environ.get(VARIABLE)
        return cls(TraceFile(path)) if path else None

    def asked(self, endpoint: str, ops: Sequence[tuple[Query, Generate | Score]]) -> None:
        """Queries have asked for `ops`, all at once."""
        burst, is_idle = next(self._bursts), not self._open
        for query, op in ops:
            facts: dict[str, Any] = {"op": op.stream_id, "burst": burst, "query": query.number}
            facts |= {"endpoint": endpoint, **self._describe(op)}
            after = self._newest_of.get(query) or (self._newest if is_idle else None)
            if after is not None:
                seconds = round(self._file.seconds - after.t, 6)
                facts["after"] = {"op": after.op, "tokens": after.tokens, "end": after.is_end}
                facts["after"]["seconds"] = seconds
            self._open[op.stream_id] = _OpenOp(query, isinstance(op, Generate))
            self._file.write("op", facts)

    def answered_without_asking(self, op: int, source: str) -> None:
        """The server is not asked for `op`; source: where its answer comes from instead."""
        self._open[op].source = source

    def arrived(self, op: int, tokens: Sequence[TokenItem]) -> None:
        """`tokens` were handed to the reader of `op`."""
        state = self._open[op]
        state.last = self._file.seconds
        if state.first is None:
            state.first = state.last
        state.tokens += len(tokens)
        if state.is_generate:
            for item in tokens:
                self._prefixes.extend(op, item.token)
        self._note(op, state, is_end=False)

    def ended(self, op: int, how: str) -> None:
        """`op` is over; how: its finish reason, the kind of error, or `left` by its reader."""
        state = self._open.pop(op)
        facts: dict[str, Any] = {"op": op, "how": how, "tokens": state.tokens}
        facts["source"] = state.source
        if state.first is not None and state.last is not None:
            facts |= {"first": round(state.first, 6), "last": round(state.last, 6)}
        self._file.write("end", facts)
        self._prefixes.end(op)
        self._note(op, state, is_end=True)

    def created(self, ops: Sequence[int], size: int) -> int:
        """A prediction was created for `ops` by a request of `size` bytes; its number."""
        number = next(self._predictions)
        self._file.write("prediction", {"prediction": number, "ops": list(ops), "bytes": size})
        return number

    def finished(self, prediction: int, how: str, seconds: float | None) -> None:
        """Nothing of `prediction` is left; seconds: of GPU time, where known."""
        facts: dict[str, Any] = {"prediction": prediction, "how": how}
        if seconds is not None:
            facts["gpu_seconds"] = round(seconds, 6)
        self._file.write("prediction_end", facts)

    def close(self) -> None:
        """Write no more."""
        self._file.close()

    def _note(self, op: int, state: _OpenOp, *, is_end: bool) -> None:
        arrival = _Arrival(op, state.tokens, is_end, self._file.seconds)
        self._newest = self._newest_of[state.query] = arrival

    def _describe(self, op: Generate | Score) -> dict[str, Any]:
        given = op.prompt + op.scored if isinstance(op, Score) else op.prompt
        kind = "SCORE" if isinstance(op, Score) else "GENERATE"
        facts: dict[str, Any] = {"kind": kind, "prompt": len(op.prompt)}
        shared = self._prefixes.begin(op.stream_id, given)
        if shared is not None:
            facts["shares"] = {"op": shared.op, "tokens": shared.tokens, "output": shared.output}
        if isinstance(op, Score):
            return facts | {"scored": len(op.scored)}
        facts |= {"max_tokens": op.max_tokens, "top_logprobs": op.top_logprobs}
        facts |= _sampling(op.sampling)
        if op.mask is not None:
            facts["mask"] = self._describe_mask(op.mask)
        return facts

    def _describe_mask(self, mask: Mask) -> Mapping[str, Any]:
        """Sizes, and a number that equal masks have in common."""
        if len(self._masks) >= MOST_MASKS:
            self._masks.clear()
        if mask.digest not in self._masks:
            self._masks[mask.digest] = next(self._mask_numbers)
        facts = {"number": self._masks[mask.digest], "deny": _count(mask.forbidden)}
        if mask.allowed is not None:
            facts["allow"] = _count(mask.allowed)
        return facts | {"add": len(mask.added)}


def _sampling(sampling: Sampling) -> dict[str, Any]:
    """The temperature, and what differs from its default."""
    values = {part.name: (getattr(sampling, part.name), part.default) for part in fields(Sampling)}
    return {
        name: value
        for name, (value, default) in values.items()
        if name == "temperature" or value != default
    }


def _count(bits: bytes) -> int:
    return int.from_bytes(bits, "little").bit_count()
