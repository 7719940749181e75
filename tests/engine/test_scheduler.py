"""The scheduler on a stand-in for the model that only counts: no torch."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lmtp_replicate.engine.pace import LEAST, Pace
from lmtp_replicate.engine.pages import PagePool, Place
from lmtp_replicate.engine.scheduler import MOST_ROWS
from lmtp_replicate.engine.spans import Spans
from lmtp_replicate.engine.tables import Tables
from tests.engine.machine import JOBS, Job, generate, machine, score


@hypothesis_settings(max_examples=300, deadline=None)
@given(
    jobs=st.lists(JOBS, min_size=1, max_size=12),
    page_tokens=st.integers(1, 5),
    spare=st.integers(0, 60),
    chunk_tokens=st.integers(1, 40),
    max_streams=st.integers(1, 8),
    whole_prompts=st.booleans(),
    remembers=st.booleans(),
    kind=st.sampled_from([Spans, Tables]),
)
def test_every_stream_gets_all_its_items_in_order(
    jobs: list[Job],
    page_tokens: int,
    spare: int,
    chunk_tokens: int,
    max_streams: int,
    whole_prompts: bool,
    remembers: bool,
    kind: type[PagePool],
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
        kind=kind,
    )
    streams = run.through(jobs)
    while run.index.evict(1, Place()):
        run.pool.check(run.index.kept)
    run.pool.check([])
    for index, (job, stream) in enumerate(zip(jobs, streams, strict=True)):
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


def test_a_short_prompt_takes_what_a_long_one_before_it_must_leave() -> None:
    pace = Pace(chunk_tokens=512)
    pace.observe(1, 0, 0.02)
    pace.observe(1, 100, 0.52)  # 5 ms for a prompt token: the least for a long one, 100 for short
    run = machine(pages=3000, pace=pace)
    early, long, short = generate(0, 3, 50), generate(1, 1000, 1), generate(2, 190, 1)
    run.scheduler.add(early)
    run.step()
    run.scheduler.add(long)
    assert run.step().prompt_tokens == LEAST
    run.scheduler.add(short)
    plans = [run.step() for _ in range(3)]
    assert [[(work.stream, work.length) for work in plan.works] for plan in plans] == [
        [(early, 1), (long, LEAST), (short, 84)],
        [(early, 1), (long, LEAST), (short, 84)],
        [(early, 1), (long, LEAST), (short, 22)],
    ]


def test_of_prompts_that_arrive_together_the_shortest_comes_first() -> None:
    run = machine(pages=600, chunk_tokens=10)
    first = [generate(0, 15, 1), generate(1, 5, 1), generate(2, 12, 1)]
    for stream in first:
        run.scheduler.add(stream)
    chunks = [[(work.stream, work.length) for work in run.step().works]]
    late = generate(3, 4, 1)
    run.scheduler.add(late)
    chunks += [[(work.stream, work.length) for work in run.step().works] for _ in range(3)]
    assert chunks == [
        [(first[1], 5), (first[2], 5)],
        [(first[2], 7), (first[0], 3)],
        [(first[0], 10)],
        [(first[0], 2), (late, 4)],
    ]


def test_a_leader_comes_when_the_shortest_of_its_followers_would() -> None:
    """They wait for it only as far as they have the same tokens to run."""
    run = machine(pages=600, chunk_tokens=50, remembers=True)
    shared = [*range(100)]
    leader = generate(0, [*shared, *range(200, 600)], 1)
    follower = generate(1, [*shared, 900], 1)
    other = generate(2, range(1000, 1200), 1)
    for stream in (leader, follower, other):
        run.scheduler.add(stream)
    works = [[(work.stream, work.length) for work in run.step().works] for _ in range(4)]
    assert works[:2] == [[(leader, 50)]] * 2
    assert works[2] == [(follower, 1), (other, 49)]
    assert works[3] == [(other, 50)]


def test_a_stream_that_was_paused_keeps_its_turn() -> None:
    """Not as if it had just arrived: those that arrive all the time would keep it waiting."""
    run = machine(pages=20, page_tokens=1, chunk_tokens=4)
    old, young = generate(0, 5, 9), generate(1, 5, 9)
    for stream in (old, young):
        run.scheduler.add(stream)
        run.step()
    while young not in run.scheduler.waiting:
        run.step()
    late = generate(2, 1, 1)
    run.scheduler.add(late)
    while young not in run.scheduler.running:
        assert late not in [work.stream for work in run.step().works]
    assert late not in [work.stream for work in run.step().works]


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
    assert [work.length for work in run.step().works] == [1, 404, 700]
