"""Steps as the step loop takes them, one by one, with a stand-in for the model that only counts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from hypothesis import strategies as st

from lmtp_replicate.engine import answers
from lmtp_replicate.engine.pace import Pace
from lmtp_replicate.engine.pages import Clear, PagePool
from lmtp_replicate.engine.plan import Plan
from lmtp_replicate.engine.prefix import NullPrefixIndex, PrefixIndex, RadixPrefixIndex
from lmtp_replicate.engine.scheduler import Scheduler
from lmtp_replicate.engine.spans import Spans
from lmtp_replicate.engine.stream import Stream
from lmtp_replicate.protocol.messages import Generate, Score, TokenItem


def generate(stream_id: int, prompt: int | Sequence[int], max_tokens: int) -> Stream:
    op = Generate(stream_id, ids(prompt), max_tokens)
    return Stream(op, op.prompt, limit=10_000)


def score(stream_id: int, prompt: int | Sequence[int], scored: int | Sequence[int]) -> Stream:
    op = Score(stream_id, ids(prompt), ids(scored))
    return Stream(op, op.prompt, limit=10_000)


def ids(tokens: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(range(tokens) if isinstance(tokens, int) else tokens)


class Job(NamedTuple):
    """A stream whose prompt has `shared` tokens in common with all the others', and the rest with
    those of its `branch`. It arrives at step `arrives`, and is cancelled at step `cancelled`."""

    is_score: bool
    shared: int
    branch: int
    rest: int
    tokens: int
    arrives: int
    cancelled: int | None

    @property
    def length(self) -> int:
        return self.shared + self.rest + self.tokens

    def stream(self, stream_id: int) -> Stream:
        rest = range(11 * self.branch, 11 * self.branch + self.rest)
        make = score if self.is_score else generate
        return make(stream_id, [*range(self.shared), *rest], self.tokens)


LAST_ARRIVAL = 12
JOBS = st.builds(
    Job,
    is_score=st.booleans(),
    shared=st.integers(1, 40),
    branch=st.integers(0, 3),
    rest=st.integers(0, 20),
    tokens=st.integers(1, 20),
    arrives=st.integers(0, LAST_ARRIVAL),
    cancelled=st.none() | st.none() | st.integers(0, 20),
)


class Machine:
    """Runs plans as the step loop does. The "keys and values" in the pool are made of the token and
    of those before it, as in a model, so that every read of a wrong place shows."""

    def __init__(self, scheduler: Scheduler, pool: PagePool, index: PrefixIndex) -> None:
        self.scheduler = scheduler
        self.pool = pool
        self.index = index
        self.memory: list[int | None] = [None] * pool.tokens
        self.items: dict[int, list[TokenItem]] = {}

    def step(self) -> Plan:
        plan = self.scheduler.schedule()
        self.scheduler.check()
        self._forward(plan)
        self.scheduler.advance(plan)
        for stream, rows in [(work.stream, list(work.rows)) for work in plan.works]:
            if rows:
                self._answer(stream, rows)
        self.scheduler.check()
        return plan

    def run(self, *streams: Stream) -> int:
        """Add `streams` at once and run them all to their ends; how many tokens that took."""
        for stream in streams:
            self.scheduler.add(stream)
        before = self.scheduler.statistics()["run_tokens"]
        while self.scheduler.streams:
            self.step()
        return self.scheduler.statistics()["run_tokens"] - before

    def through(self, jobs: Sequence[Job]) -> list[Stream]:
        """Run the streams of `jobs`, which come and go as these say, until all have ended."""
        streams = [job.stream(index) for index, job in enumerate(jobs)]
        for step in range(5000):
            for job, stream in zip(jobs, streams, strict=True):
                if job.arrives == step:
                    self.scheduler.add(stream)
                if job.cancelled == step and stream in self.scheduler.streams:
                    self.scheduler.finish(stream)
            if step > LAST_ARRIVAL and not self.scheduler.streams:
                break
            if self.scheduler.streams:
                self.step()
        assert not self.scheduler.streams
        return streams

    def _forward(self, plan: Plan) -> None:
        for change in plan.changes:
            if isinstance(change, Clear):
                first, length = change
                self.memory[first : first + length] = [None] * length
            else:
                source, target, length = change
                self.memory[target : target + length] = self.memory[source : source + length]
        for work in plan.works:
            place = work.stream.place
            assert place is not None and work.length > 0
            at = self.pool.addresses(place, 0, self.pool.capacity(place))
            for position in range(work.start, work.stop):
                before = self.memory[at[position - 1]] if position else 0
                self.memory[at[position]] = _after(before, work.stream.tokens[position])
            right = list(accumulate(work.stream.tokens[: work.stop], _after, initial=0))[1:]
            assert [self.memory[address] for address in at[: work.stop]] == right
            if work.length == 1:  # attention reads it in one batch with others
                rest = {self.memory[address] for address in at[work.stop :]}
                assert rest <= {None}, "something of another stream was left behind"

    def _answer(self, stream: Stream, rows: Sequence[int]) -> None:
        if isinstance(stream.op, Score):
            items = answers.scored(stream, [float(row) for row in rows])
        else:
            assert rows == [len(stream.tokens) - 1]
            items = [answers.generated(stream, self._next(stream), 0.0, {}, ())]
        self.items.setdefault(stream.op.stream_id, []).extend(items)
        if items[-1].finish_reason is not None:
            self.scheduler.finish(stream)

    def _next(self, stream: Stream) -> int:
        """The token that a GENERATE gets."""
        return (len(stream.tokens) - 1) % 50


def _after(before: int | None, token: int) -> int:
    return hash((before, token))


def machine(
    pages: int = 64,
    page_tokens: int = 4,
    chunk_tokens: int = 512,
    max_streams: int = 100,
    *,
    whole_prompts: bool = False,
    remembers: bool = False,
    pace: Pace | None = None,
    kind: type[PagePool] = Spans,
) -> Machine:
    pool = kind(pages, page_tokens)
    index = RadixPrefixIndex(pool) if remembers else NullPrefixIndex()
    scheduler = Scheduler(
        pool,
        pace or Pace(chunk_tokens),
        index,
        max_streams=max_streams,
        whole_prompts=whole_prompts,
    )
    return Machine(scheduler, pool, index)
