"""What is run and what is copied, counted in tokens: no clock, no torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from lmtp_replicate.engine.pages import Copy, PagePool
from lmtp_replicate.engine.plan import Plan
from lmtp_replicate.engine.prefix import RadixPrefixIndex
from lmtp_replicate.engine.scheduler import WORTH_WAITING
from lmtp_replicate.engine.spans import Spans
from lmtp_replicate.engine.stream import Stream
from lmtp_replicate.engine.tables import Tables
from tests.engine.machine import Machine, generate, machine, score

PREFIX = tuple(range(500))
OPTIONS = [(600 + n, 7, 8, 9, 10) for n in range(3)]


Remembering = Callable[..., Machine]


def remembering_in(
    kind: type[PagePool], pages: int = 1000, chunk_tokens: int = 512, max_streams: int = 100
) -> Machine:
    return machine(pages, 4, chunk_tokens, max_streams, remembers=True, kind=kind)


@pytest.fixture(params=[Spans, Tables])
def remembering(request: pytest.FixtureRequest) -> Remembering:
    """Makes machines with pools of one kind."""
    return partial(remembering_in, request.param)


def fan_out() -> list[Stream]:
    return [score(n, PREFIX, option) for n, option in enumerate(OPTIONS)]


def works(plan: Plan) -> list[tuple[int, int]]:
    return [(work.stream.op.stream_id, work.length) for work in plan.works]


@pytest.mark.parametrize("chunk_tokens", [512, 490, 100, 7])
@pytest.mark.parametrize("max_streams", [100, 2, 1])
def test_a_cold_fan_out_runs_its_prefix_once(
    remembering: Remembering, chunk_tokens: int, max_streams: int
) -> None:
    run = remembering(chunk_tokens=chunk_tokens, max_streams=max_streams)
    # The last scored token is only looked up; the last token of the prefix gives the others' rows.
    assert run.run(*fan_out()) == 499 + 3 * len(OPTIONS[0])


def test_a_warm_fan_out_runs_only_its_options(remembering: Remembering) -> None:
    run = remembering()
    run.run(generate(9, PREFIX, 1))
    streams = fan_out()
    for stream in streams:
        run.scheduler.add(stream)
    assert works(run.step()) == [(n, len(OPTIONS[0])) for n in range(3)]
    assert not run.scheduler.streams, "all in one step"


def test_a_fan_out_follows_a_prefix_that_is_being_run(remembering: Remembering) -> None:
    run = remembering(chunk_tokens=100)
    run.scheduler.add(generate(9, PREFIX, 30))
    run.step()
    assert run.run(*fan_out()) == 499 - 100 + 30 + 3 * len(OPTIONS[0])


def test_samples_of_one_prompt_run_it_once(remembering: Remembering) -> None:
    run = remembering()
    assert run.run(*[generate(n, PREFIX, 4) for n in range(8)]) == 499 + 8 * 4


def test_a_growing_prefix_runs_only_new_tokens(remembering: Remembering) -> None:
    run = remembering()
    tokens: Sequence[int] = range(20)
    total = 0
    for index in range(40):
        stream = generate(index, tokens, 8)
        total += run.run(stream)
        tokens = stream.tokens
    assert len(tokens) == 20 + 40 * 8
    assert total == len(tokens) - 1  # the very last token was never run
    counted = run.scheduler.statistics()
    assert counted["run_tokens"] == total
    assert counted["hit_tokens"] == sum(20 + 8 * n - 1 for n in range(1, 40))
    assert counted["prompt_tokens"] == sum(20 + 8 * n for n in range(40))


def test_what_only_a_part_of_a_stream_shares_is_found_to_the_token(
    remembering: Remembering,
) -> None:
    run = remembering()
    run.run(score(0, PREFIX, OPTIONS[0]))
    assert run.run(generate(1, [*PREFIX[:333], 999, 998], 1)) == 2
    assert run.run(generate(2, [*PREFIX[:333], 999, 997, 996], 1)) == 2


def test_followers_start_in_the_step_after_the_prefix_exists(remembering: Remembering) -> None:
    run = remembering(chunk_tokens=200)
    for stream in fan_out():
        run.scheduler.add(stream)
    assert [works(run.step()) for _ in range(4)] == [
        [(0, 200)],
        [(0, 200)],
        [(0, 104)],
        [(1, 5), (2, 5)],
    ]


def test_streams_between_leader_and_follower_are_not_held_up(remembering: Remembering) -> None:
    run = remembering(chunk_tokens=200)
    first, second, _ = fan_out()
    for stream in (first, second):
        run.scheduler.add(stream)
    done = [works(run.step())]
    run.scheduler.add(generate(9, range(700, 750), 3))
    done += [works(run.step()) for _ in range(3)]
    assert done[2] == [(0, 104), (9, 50)]
    assert done[3][:2] == [(9, 1), (1, 5)]


def test_nobody_waits_for_a_few_tokens(remembering: Remembering) -> None:
    run = remembering()
    few = range(WORTH_WAITING - 1)
    streams = [generate(n, [*few, *range(100 * n, 100 * n + 40)], 1) for n in range(1, 4)]
    for stream in streams:
        run.scheduler.add(stream)
    assert works(run.step()) == [(n, len(few) + 40) for n in range(1, 4)]


def test_a_cancelled_leader_leaves_what_it_has_to_the_next(remembering: Remembering) -> None:
    run = remembering(chunk_tokens=200)
    streams = fan_out()
    for stream in streams:
        run.scheduler.add(stream)
    run.step()
    run.scheduler.finish(streams[0])
    assert [works(run.step()) for _ in range(3)] == [[(1, 200)], [(1, 104)], [(2, 5)]]
    assert len(run.items[1]) == len(run.items[2]) == 5


def test_a_leader_that_is_cancelled_before_it_ran_strands_nobody(remembering: Remembering) -> None:
    run = remembering(chunk_tokens=200)
    streams = fan_out()
    for stream in streams:
        run.scheduler.add(stream)
    run.scheduler.schedule()  # placed, not run: as when a step fails
    run.scheduler.finish(streams[0])
    assert run.run() == 499 + 2 * len(OPTIONS[0])


def test_an_evicted_prefix_is_run_again() -> None:
    run = remembering_in(Spans, pages=130)
    assert run.run(generate(0, PREFIX, 1)) == 500
    assert run.run(generate(1, range(1000, 1400), 1)) == 400
    assert run.scheduler.statistics()["evictions"] == 1
    assert run.run(generate(2, PREFIX, 1)) == 500


def test_a_prefix_is_of_use_even_where_its_own_pages_must_be_given_up() -> None:
    run = remembering_in(Spans, pages=32)
    assert run.run(generate(0, range(100), 1)) == 100
    assert run.run(generate(1, [*range(90), 200, 201], 1)) == 2
    assert run.scheduler.statistics()["evictions"] == 1


def test_what_streams_have_in_common_is_in_memory_once() -> None:
    """A pool that holds one prefix, and not two, holds a fan-out from it."""
    run = remembering_in(Tables, pages=140)
    for stream in fan_out():
        run.scheduler.add(stream)
    run.step()
    assert len(works(run.step())) == 2, "the followers are placed beside their leader"
    assert not run.scheduler.streams
    # 124 of the first one's 126 pages are full of tokens that the others need too.
    assert run.scheduler.statistics()["kept_tokens"] == 4 * (126 + 2 + 2)
    assert run.scheduler.statistics()["evictions"] == 0


def test_a_page_that_is_shared_is_not_written() -> None:
    """Whoever needs a part of it has a copy."""
    run = remembering_in(Tables)
    run.run(generate(0, range(10), 1))
    for stream in (generate(1, [*range(9), 91], 2), generate(2, [*range(9), 92], 2)):
        run.scheduler.add(stream)
    assert copies(run.step()) == [1, 1]
    assert run.run() == 2
    assert run.run(generate(3, range(10), 1)) == 1


def copies(plan: Plan) -> list[int]:
    return [change.length for change in plan.changes if isinstance(change, Copy)]


def test_who_continues_all_of_a_prefix_takes_its_place_without_a_copy(
    remembering: Remembering,
) -> None:
    run = remembering()
    run.run(generate(0, range(65), 1))
    run.scheduler.add(generate(1, range(80), 2))
    plan = run.step()
    assert works(plan) == [(1, 15)]
    assert copies(plan) == []
    run.run()
    assert run.scheduler.statistics()["kept_tokens"] == 84, "the prefix is held once"
    assert run.scheduler.statistics()["evictions"] == 0


def test_a_place_is_copied_by_all_but_the_first_and_by_whoever_leaves_its_path() -> None:
    run = remembering_in(Spans)
    run.run(generate(0, range(65), 1))
    for stream in (generate(1, range(66), 1), generate(2, [*range(65), 99], 1)):
        run.scheduler.add(stream)
    assert copies(run.step()) == [65]
    run.scheduler.add(generate(3, [*range(40), 99], 1))
    assert copies(run.step()) == [40]
    assert run.run(generate(4, range(67), 1)) == 1, "the first one's prefix is still there"


def test_a_place_with_a_neighbour_in_its_way_is_copied() -> None:
    run = remembering_in(Spans)
    run.run(generate(0, range(17), 1))  # 5 pages of a place of 8
    run.scheduler.add(generate(1, range(900, 903), 9))
    run.step()  # has the page after the next one
    run.scheduler.add(generate(2, range(20), 4))
    assert copies(run.step()) == [17]


def test_who_has_taken_a_place_and_leaves_at_once_leaves_the_prefix(
    remembering: Remembering,
) -> None:
    run = remembering()
    run.run(generate(0, range(65), 1))
    stream = generate(1, range(80), 1)
    run.scheduler.add(stream)
    run.scheduler.schedule()  # placed, not run
    run.scheduler.finish(stream)
    run.scheduler.check()
    assert run.run(generate(2, range(70), 1)) == 5


def test_what_was_of_use_lately_outlives_what_was_not(remembering: Remembering) -> None:
    run = remembering(pages=64)
    prompts = [range(100 * n, 100 * n + 60) for n in range(4)]
    for index, prompt in enumerate(prompts):
        run.run(generate(index, prompt, 1))
    assert run.run(generate(4, prompts[0], 1)) == 1
    run.run(generate(5, range(900, 960), 1))
    assert run.run(generate(6, prompts[0], 1)) == 1
    assert run.run(generate(7, prompts[1], 1)) == 60


def test_room_for_one_large_stream_costs_few_small_prefixes() -> None:
    """By age alone nearly all would go before so many neighbours were free."""
    run = remembering_in(Spans, pages=64)
    for index in range(16):
        run.run(generate(index, range(100 * index, 100 * index + 16), 1))
    for index in range(0, 16, 2):
        run.run(generate(index, range(100 * index, 100 * index + 16), 1))
    run.run(generate(99, range(5000, 5060), 1))
    assert run.scheduler.statistics()["evictions"] == 4


def test_kept_is_only_what_holds_something_and_what_nothing_longer_holds(
    remembering: Remembering,
) -> None:
    run = remembering()
    run.run(generate(0, range(65), 1))  # 17 pages, in a place of 32
    assert run.scheduler.statistics()["kept_tokens"] == 17 * 4
    run.run(generate(1, range(65), 1))
    assert run.scheduler.statistics()["kept_tokens"] == 17 * 4
    run.run(generate(2, range(70), 1))
    assert run.scheduler.statistics()["kept_tokens"] == 18 * 4
    run.run(generate(3, range(30), 1))
    assert run.scheduler.statistics()["kept_tokens"] == 18 * 4
    assert run.scheduler.statistics()["evictions"] == 0


def test_an_older_stream_never_follows_a_younger_one() -> None:
    pool = Spans(1000, 4)
    index = RadixPrefixIndex(pool)
    older, younger, youngest = (generate(n, PREFIX, 1) for n in range(3))
    younger.place, younger.cached = pool.take(500), 100
    index.start(younger)
    match = index.match(older)
    assert match is not None
    assert (match.ready, match.coming, match.leader) == (100, 100, None)
    match = index.match(youngest)
    assert match is not None
    assert (match.ready, match.coming, match.leader) == (100, 499, younger)


def test_a_lone_stream_outgrows_all_that_is_kept_without_a_pause() -> None:
    run = remembering_in(Spans, pages=11)
    for index in range(4):
        run.run(generate(index, range(100 * index, 100 * index + 5), 1))
    run.run(generate(9, range(3), 41))
    assert run.scheduler.statistics()["pauses"] == 0
    assert run.scheduler.statistics()["evictions"] == 4


def test_the_log_tells_now_and_then_what_was_known(
    remembering: Remembering, caplog: pytest.LogCaptureFixture
) -> None:
    run = remembering()
    with caplog.at_level(logging.INFO):
        for index in range(1100):
            run.run(generate(index, range(5), 1))
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    assert "'prompt_tokens': 2500" in caplog.text
