"""The ops of a recording, asked again: other ids, the same sharing, the same dependences."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from time import perf_counter

from benchmarks.recording import RecordedMask, RecordedOp, Recording
from benchmarks.workload import FIRST_ID


class ReplayedOp:
    """`given` (prompt and scored tokens) and `output` as they are this time, and when what came."""

    def __init__(self) -> None:
        self.given: list[int] = []
        self.output: list[int] = []
        self.tokens = 0
        self.asked = 0.0
        self.first: float | None = None
        self.error: str | None = None
        self.is_over = False
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    @property
    def sequence(self) -> list[int]:
        return self.given + self.output

    def take(self, token: int, *, is_generated: bool) -> None:
        """A token has come."""
        if self.first is None:
            self.first = perf_counter()
        self.tokens += 1
        if is_generated:
            self.output.append(token)
        self._wake()

    def end(self) -> None:
        """No more will come."""
        self.is_over = True
        self._wake()

    async def reach(self, tokens: int, *, end: bool) -> None:
        """Wait until `tokens` have come, or, with `end`, all; at least until the op is over."""
        needed = 2**62 if end else tokens
        if not self.is_over and self.tokens < needed:
            arrived = asyncio.get_running_loop().create_future()
            self._waiting.append((needed, arrived))
            await arrived

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for needed, arrived in waiting:
            if not self.is_over and self.tokens < needed:
                self._waiting.append((needed, arrived))
            elif not arrived.done():
                arrived.set_result(None)


class Ids:
    """Chooses ids below `vocabulary`: equal seeds give equal ids, but never those of a trace, which
    does not hold them."""

    def __init__(self, vocabulary: int, seed: str) -> None:
        self._ids = range(min(FIRST_ID, vocabulary - 1), vocabulary)
        self._seed = seed
        self._random = random.Random(seed)

    def fresh(self, count: int, first_not: set[int]) -> list[int]:
        """`count` ids; the first is none of `first_not`, if there is another."""
        ids = self._random.choices(self._ids, k=count)
        possible = set(self._ids) - first_not if ids and ids[0] in first_not else set()
        if possible:
            ids[0] = self._random.choice(sorted(possible))
        return ids

    def bias(self, mask: RecordedMask) -> Mapping[int, float]:
        """A mask of the recorded sizes, at most all ids but one forbidden; equal for equal
        numbers."""
        source = random.Random(f"{self._seed}/mask {mask.number}")
        most = len(self._ids)
        if mask.allow is not None:
            return dict.fromkeys(source.sample(self._ids, min(mask.allow, most)), 100.0)
        chosen = source.sample(self._ids, min(mask.deny + mask.add, most - 1))
        bias = dict.fromkeys(chosen[: mask.deny], -100.0)
        return bias | dict.fromkeys(chosen[mask.deny :], 1.0)


class Replayed:
    """All ops of a recording, in the state in which they are this time."""

    def __init__(self, recording: Recording, ids: Ids) -> None:
        self._recording = recording
        self._ids = ids
        self.ops = {number: ReplayedOp() for number in recording.ops}
        self._began: list[ReplayedOp] = []

    async def may_start(self, burst: Sequence[RecordedOp]) -> bool:
        """Wait for what the ops of `burst` depend on. False when they depend on nothing but the
        time since the start."""
        is_dependent = False
        for op in burst:
            if op.shares is not None and op.shares.output and op.shares.op in self.ops:
                # Without them its prompt is not known.
                await self.ops[op.shares.op].reach(op.shares.output, end=False)
            if op.after is not None and op.after.op in self.ops:
                is_dependent = True
                await self.ops[op.after.op].reach(op.after.tokens, end=op.after.end)
        return is_dependent

    def begin(self, op: RecordedOp) -> ReplayedOp:
        """Choose the op's tokens."""
        replayed = self.ops[op.op]
        prefix: list[int] = []
        if op.shares is not None and op.shares.op in self.ops:
            prefix = self.ops[op.shares.op].sequence[: op.shares.tokens]
        size = len(prefix)
        others = (each.sequence for each in self._began)
        taken = {other[size] for other in others if len(other) > size and other[:size] == prefix}
        replayed.given = prefix + self._ids.fresh(op.given - size, taken)
        replayed.asked = perf_counter()
        self._began.append(replayed)
        return replayed

    def bias(self, op: RecordedOp) -> Mapping[int, float] | None:
        """The op's mask this time."""
        return None if op.mask is None else self._ids.bias(op.mask)
