"""The scheduler on a stand-in for the model that only counts: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lmtp_replicate.engine import answers
from lmtp_replicate.engine.pace import LEAST, Pace
from lmtp_replicate.engine.pages import Clear, PagePool
from lmtp_replicate.engine.prefix import NullPrefixIndex, PrefixIndex, RadixPrefixIndex
from lmtp_replicate.engine.scheduler import MOST_ROWS, Plan, Scheduler
from lmtp_replicate.engine.stream import Stream
from lmtp_replicate.protocol.messages import Generate, Score, TokenItem


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
            first = self.pool.place(place, 0)
            for position in range(work.start, work.stop):
                before = self.memory[first + position - 1] if position else 0
                self.memory[first + position] = _after(before, work.stream.tokens[position])
            right = list(accumulate(work.stream.tokens[: work.stop], _after, initial=0))[1:]
            assert self.memory[first : first + work.stop] == right
            if work.stream.is_decoding:
                rest = self.memory[first + work.stop : first + self.pool.capacity(place)]
                assert set(rest) <= {None}, "something of another stream was left behind"
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

    def _answer(self, stream: Stream, rows: Sequence[int]) -> None:
        if isinstance(stream.op, Score):
            items = answers.scored(stream, [float(row) for row in rows])
        else:
            assert rows == [len(stream.tokens) - 1]
            items = [answers.generated(stream, rows[0] % 50, 0.0, {}, ())]
        self.items.setdefault(stream.op.stream_id, []).extend(items)
        if items[-1].finish_reason is not None:
            self.scheduler.finish(stream)


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
) -> Machine:
    pool = PagePool(pages, page_tokens)
    index = RadixPrefixIndex(pool) if remembers else NullPrefixIndex()
    scheduler = Scheduler(
        pool,
        Pace(chunk_tokens),
        index,
        max_streams=max_streams,
        whole_prompts=whole_prompts,
    )
    return Machine(scheduler, pool, index)


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
        rest = range(100 * self.branch, 100 * self.branch + self.rest)
        make = score if self.is_score else generate
        return make(stream_id, [*range(self.shared), *rest], self.tokens)


JOBS = st.builds(
    Job,
    is_score=st.booleans(),
    shared=st.integers(1, 40),
    branch=st.integers(0, 3),
    rest=st.integers(0, 20),
    tokens=st.integers(1, 20),
    arrives=st.integers(0, 12),
    cancelled=st.none() | st.none() | st.integers(0, 20),
)


@hypothesis_settings(max_examples=300, deadline=None)
@given(
    jobs=st.lists(JOBS, min_size=1, max_size=12),
    page_tokens=st.integers(1, 5),
    spare=st.integers(0, 60),
    chunk_tokens=st.integers(1, 40),
    max_streams=st.integers(1, 8),
    whole_prompts=st.booleans(),
    remembers=st.booleans(),
)
def test_every_stream_gets_all_its_items_in_order(
    jobs: list[Job],
    page_tokens: int,
    spare: int,
    chunk_tokens: int,
    max_streams: int,
    whole_prompts: bool,
    remembers: bool,
) -> None:
    """Whatever the memory (it just holds the longest stream, or a little more), nothing is lost,
    repeated, mixed up or kept for ever; every page is free, kept or a stream's in every step."""
    run = machine(
        -(-max(job.length for job in jobs) // page_tokens) + spare,
        page_tokens,
        chunk_tokens,
        max_streams,
        whole_prompts=whole_prompts,
        remembers=remembers,
    )
    streams = [(job, job.stream(index)) for index, job in enumerate(jobs)]
    for step in range(5000):
        for job, stream in streams:
            if job.arrives == step:
                run.scheduler.add(stream)
            if job.cancelled == step and stream in run.scheduler.streams:
                run.scheduler.finish(stream)
        if step > 20 and not run.scheduler.streams:
            break
        run.step()
    assert not run.scheduler.streams
    while run.index.evict(1):
        run.pool.check(run.index.kept)
    run.pool.check([])
    for index, (job, stream) in enumerate(streams):
        items = run.items.get(index, [])
        if job.cancelled is None:
            assert len(items) == job.tokens
        if job.is_score:
            first = len(stream.op.prompt) - 1
            assert [item.logprob for item in items] == [
                float(first + position) for position in range(len(items))
            ]


def test_decoding_streams_are_in_every_step_while_a_long_prompt_is_cut() -> None:
    run = machine(pages=600)
    early = [generate(index, 3, 100) for index in range(3)]
    for stream in early:
        run.scheduler.add(stream)
    run.step()
    long = generate(9, 1000, 1)
    run.scheduler.add(long)
    plan = run.step()
    assert [work.stream for work in plan.works] == [*early, long]
    assert plan.decoding == 3
    assert plan.prompt_tokens == LEAST
    for _ in range(10):
        assert run.step().decoding == 3


def test_with_nothing_decoding_a_prompt_is_run_in_large_chunks() -> None:
    run = machine(pages=600, chunk_tokens=512)
    run.scheduler.add(generate(1, 1000, 1))
    assert [run.step().prompt_tokens for _ in range(2)] == [512, 488]


def test_prompts_come_first_come_first_served() -> None:
    run = machine(pages=600, chunk_tokens=10)
    for index in range(3):
        run.scheduler.add(generate(index, 15, 1))
    lengths = [[(w.stream.op.stream_id, w.length) for w in run.step().works] for _ in range(5)]
    assert lengths[:3] == [[(0, 10)], [(0, 5), (1, 5)], [(1, 10)]]


def test_nobody_overtakes_a_stream_that_waits_for_pages() -> None:
    run = machine(pages=8, page_tokens=4)
    for stream in (generate(0, 16, 4), generate(1, 30, 1), generate(2, 1, 1)):
        run.scheduler.add(stream)
    run.step()
    assert [s.op.stream_id for s in run.scheduler.running] == [0]
    while run.scheduler.streams:
        run.step()
    assert list(run.items) == [0, 1, 2]


def test_the_youngest_is_paused_and_later_run_again() -> None:
    run = machine(pages=4, page_tokens=4)
    older, younger = generate(0, 7, 8), generate(1, 7, 8)
    run.scheduler.add(older)
    run.scheduler.add(younger)
    finished: list[int] = []
    while run.scheduler.streams:
        run.step()
        finished += [
            s.op.stream_id
            for s in (older, younger)
            if s.answered == 8 and s.op.stream_id not in finished
        ]
    assert run.scheduler.statistics()["pauses"] == 1
    assert finished == [0, 1]
    assert len(run.items[0]) == len(run.items[1]) == 8


def test_a_step_keeps_a_bounded_number_of_rows() -> None:
    run = machine(pages=1000, chunk_tokens=10_000)
    run.scheduler.add(score(1, 5, 600))
    answered = [0]
    while run.scheduler.streams:
        run.step()
        answered.append(len(run.items[1]))
    assert answered[-1] == 600
    assert max(after - before for before, after in pairwise(answered)) == MOST_ROWS


def test_whole_prompts_are_never_cut() -> None:
    run = machine(pages=600, chunk_tokens=8, whole_prompts=True)
    run.scheduler.add(generate(0, 3, 50))
    run.step()
    run.scheduler.add(generate(1, 700, 1))
    run.scheduler.add(score(2, 5, 400))
    assert [work.length for work in run.step().works] == [1, 700, 404]
