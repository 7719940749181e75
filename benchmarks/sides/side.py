"""What the comparisons ask of a side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.trace import Trace
from benchmarks.workload import Chain, FanOut, Request


class SideError(Exception):
    """The side cannot be started, or failed; says how."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Answers in the order of the requests; `wall` in seconds."""

    traces: list[Trace]
    wall: float


@dataclass(frozen=True, slots=True)
class ChainAnswer:
    """The tokens of each op, and the seconds each took."""

    answers: list[list[int]]
    seconds: list[float]
    wall: float


@dataclass(frozen=True, slots=True)
class FanOutAnswer:
    """By round: the seconds of its scores, and the log probabilities by option and token."""

    seconds: list[float]
    scores: list[list[list[float]]]


class Side(Protocol):
    """One of the things compared, in a process of its own."""

    name: str

    async def open(self) -> None:
        """Start it and load the model. Raises SideError."""

    async def close(self) -> None:
        """End its process, also when it never opened. Idempotent."""

    async def batch(self, requests: Sequence[Request], streams: int) -> Batch:
        """Answer `requests`, `streams` of them at a time. Raises SideError."""


class QuerySide(Side, Protocol):
    """A side that can also do what LMQL asks for."""

    async def chain(self, chain: Chain) -> ChainAnswer:
        """Answer the ops one after another. Raises SideError."""

    async def fan_out(self, fan_out: FanOut) -> FanOutAnswer:
        """Answer the rounds one after another. Raises SideError."""
