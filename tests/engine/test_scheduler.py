"""The scheduler on a stand-in for the model that only counts: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lmtp_replicate.engine import answers
from lmtp_replicate.engine.pace import LEAST, Pace
from lmtp_replicate.engine.pages import Clear, PagePool, Span
from lmtp_replicate.engine.prefix import Hit, NullPrefixIndex
from lmtp_replicate.engine.scheduler import MOST_ROWS, Plan, Scheduler
from lmtp_replicate.engine.stream import Stream
from lmtp_replicate.protocol.messages import Generate, Score, TokenItem


class OneEntryIndex(NullPrefixIndex):
    """Remembers the last finished stream: the smallest index that reuses anything."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self.entry: tuple[list[int], Span] | None = None

    def match(self, tokens: Sequence[int]) -> Hit | None:
        if self.entry is None:
            return None
        known, span = self.entry
        same = 0
        while same < min(len(known), len(tokens)) and known[same] == tokens[same]:
            same += 1
        return Hit(span, same) if same else None

    def keep(self, tokens: Sequence[int], span: Span) -> None:
        self.evict()
        self._pool.retain(span)
        self.entry = (list(tokens), span)

    def evict(self) -> bool:
        if self.entry is None:
            return False
        self._pool.release(self.entry[1])
        self.entry = None
        return True


class Machine:
    """Runs plans as the step loop does. The "keys and values" in the pool are token ids and
    positions, so that every read of a wrong place shows."""

    def __init__(self, scheduler: Scheduler, pool: PagePool, index: OneEntryIndex) -> None:
        self.scheduler = scheduler
        self.pool = pool
        self.index = index
        self.memory: list[tuple[int, int] | None] = [None] * pool.tokens
        self.items: dict[int, list[TokenItem]] = {}

    def step(self) -> Plan:
        plan = self.scheduler.schedule()
        self.scheduler.check([self.index.entry[1]] if self.index.entry else [])
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
            for position in range(work.start, work.stop):
                at = self.pool.place(place, position)
                self.memory[at] = (work.stream.tokens[position], position)
            first = self.pool.place(place, 0)
            seen = self.memory[first : first + work.stop]
            assert seen == [(t, p) for p, t in enumerate(work.stream.tokens[: work.stop])]
            if work.stream.is_decoding:
                rest = self.memory[first + work.stop : first + self.pool.capacity(place)]
                assert set(rest) <= {None}, "something of another stream was left behind"
        self.scheduler.advance(plan)
        for stream, rows in [(work.stream, list(work.rows)) for work in plan.works]:
            if rows:
                self._answer(stream, rows)
        return plan

    def _answer(self, stream: Stream, rows: Sequence[int]) -> None:
        if isinstance(stream.op, Score):
            items = answers.scored(stream, [float(row) for row in rows])
        else:
            assert rows == [len(stream.tokens) - 1]
            items = [answers.generated(stream, rows[0] % 50, 0.0, {}, ())]
        self.items.setdefault(stream.op.stream_id, []).extend(items)
        if items[-1].finish_reason is not None:
            self.scheduler.finish(stream)


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
    index = OneEntryIndex(pool)
    scheduler = Scheduler(
        pool,
        Pace(chunk_tokens),
        index if remembers else NullPrefixIndex(),
        max_streams=max_streams,
        whole_prompts=whole_prompts,
    )
    return Machine(scheduler, pool, index)


def generate(stream_id: int, prompt: int, max_tokens: int, limit: int = 10_000) -> Stream:
    op = Generate(stream_id, tuple(range(prompt)), max_tokens)
    return Stream(op, op.prompt, limit)


def score(stream_id: int, prompt: int, scored: int) -> Stream:
    op = Score(stream_id, tuple(range(prompt)), tuple(range(scored)))
    return Stream(op, op.prompt, limit=10_000)


@st.composite
def jobs(draw: st.DrawFn) -> tuple[bool, int, int, int]:
    """Whether to score, length of the prompt, tokens to produce, steps to wait before it."""
    return (
        draw(st.booleans()),
        draw(st.integers(1, 30)),
        draw(st.integers(1, 20)),
        draw(st.integers(0, 6)),
    )


@hypothesis_settings(max_examples=200, deadline=None)
@given(
    work=st.lists(jobs(), min_size=1, max_size=12),
    page_tokens=st.integers(1, 5),
    spare=st.integers(0, 30),
    chunk_tokens=st.integers(1, 40),
    max_streams=st.integers(1, 5),
    whole_prompts=st.booleans(),
    remembers=st.booleans(),
    cancelled=st.sets(st.integers(0, 11), max_size=3),
)
def test_every_stream_gets_all_its_items_in_order(
    work: list[tuple[bool, int, int, int]],
    page_tokens: int,
    spare: int,
    chunk_tokens: int,
    max_streams: int,
    whole_prompts: bool,
    remembers: bool,
    cancelled: set[int],
) -> None:
    """Whatever the memory (it just holds the longest stream, or a little more), nothing is lost,
    repeated, mixed up or kept for ever; and no page is left held."""
    longest = max(prompt + tokens for _, prompt, tokens, _ in work)
    pages = -(-longest // page_tokens) + spare
    run = machine(
        pages,
        page_tokens,
        chunk_tokens,
        max_streams,
        whole_prompts=whole_prompts,
        remembers=remembers,
    )
    streams = [
        (score if is_score else generate)(index, prompt, tokens)
        for index, (is_score, prompt, tokens, _) in enumerate(work)
    ]
    arrivals = [(delay, stream) for (_, _, _, delay), stream in zip(work, streams, strict=True)]
    done: set[int] = set()
    for step in range(5000):
        for stream in [s for delay, s in arrivals if delay == step]:
            run.scheduler.add(stream)
        for stream in [s for s in run.scheduler.streams if s.op.stream_id in cancelled]:
            if step > 4:
                run.scheduler.finish(stream)
                done.add(stream.op.stream_id)
        if step > 6 and not run.scheduler.streams:
            break
        run.step()
    assert not run.scheduler.streams
    run.index.evict()
    run.pool.check([])
    for index, (_, _, tokens, _) in enumerate(work):
        items = run.items.get(index, [])
        if index not in done:
            assert len(items) == tokens
    for stream in streams:
        if isinstance(stream.op, Score):
            rows = [item.logprob for item in run.items.get(stream.op.stream_id, [])]
            first = len(stream.op.prompt) - 1
            assert rows == [float(first + index) for index in range(len(rows))]


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
    assert run.scheduler.pauses == 1
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


def test_a_known_prefix_is_copied_and_not_run_again() -> None:
    run = machine(pages=32, page_tokens=4, remembers=True)
    run.scheduler.add(generate(0, 20, 1))
    assert run.step().prompt_tokens == 20
    run.scheduler.add(generate(1, 30, 1))
    assert run.step().prompt_tokens == 10
    run.scheduler.add(score(2, 11, 8))  # tokens 0..10, then 0..7: rows are wanted from index 10 on
    assert run.step().prompt_tokens == 8
    run.scheduler.add(generate(3, 100, 1))  # needs all pages: the index gives its own away
    assert run.step().prompt_tokens == 100
