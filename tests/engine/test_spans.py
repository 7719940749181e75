"""Page accounting of spans, driven by hypothesis through any sequence of operations."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lmtp_replicate.engine.pages import Place
from lmtp_replicate.engine.spans import Spans


class SpanAccounts(RuleBasedStateMachine):
    """`held` names every span as often as it is held; `parts` are those of which only the first
    pages are still held."""

    held: list[Place]
    parts: list[Place]

    @initialize(total=st.integers(1, 40), page_tokens=st.integers(1, 5))
    def start(self, total: int, page_tokens: int) -> None:
        self.pool = Spans(total, page_tokens)
        self.held = []
        self.parts = []

    @rule(tokens=st.integers(0, 220))
    def take(self, tokens: int) -> None:
        free_before = self.pool.free
        span = self.pool.take(tokens)
        if span is None:
            assert self.held or self.parts or tokens > self.pool.tokens
            assert self.pool.free == free_before
        else:
            assert self.pool.capacity(span) >= tokens
            self.held.append(span)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), more=st.integers(1, 100))
    def grow(self, data: st.DataObject, more: int) -> None:
        span = data.draw(st.sampled_from(self.held))
        if self.held.count(span) > 1:
            return
        tokens = self.pool.capacity(span) + more
        grown = self.pool.grow(span, tokens)
        if grown is None:
            assert len(self.held) > 1 or self.parts or tokens > self.pool.tokens
        else:
            assert self.pool.capacity(grown) >= tokens
            self.held[self.held.index(span)] = grown

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def retain(self, data: st.DataObject) -> None:
        span = data.draw(st.sampled_from(self.held))
        self.pool.retain(span)
        self.held.append(span)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        span = data.draw(st.sampled_from(self.held))
        self.pool.release(span)
        self.held.remove(span)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), share=st.floats(0, 1))
    def keep_a_part(self, data: st.DataObject, share: float) -> None:
        span = data.draw(st.sampled_from(self.held))
        if self.held.count(span) > 1:
            return
        tokens = 1 + int(share * (self.pool.capacity(span) - 1))
        part = self.pool.part(span, tokens)
        assert part.pages == span.pages[: len(part.pages)]
        assert self.pool.capacity(part) - self.pool.page_tokens < tokens
        assert self.pool.capacity(part) >= tokens
        self.pool.retain(part)
        self.pool.release(span)
        self.held.remove(span)
        self.parts.append(part)

    @precondition(lambda self: self.parts)
    @rule(data=st.data())
    def release_a_part(self, data: st.DataObject) -> None:
        part = data.draw(st.sampled_from(self.parts))
        self.pool.release(part)
        self.parts.remove(part)

    @precondition(lambda self: self.parts)
    @rule(data=st.data(), more=st.integers(0, 100))
    def extend_a_part(self, data: st.DataObject, more: int) -> None:
        part = data.draw(st.sampled_from(self.parts))
        tokens = self.pool.capacity(part) + more
        first = part.pages[0]
        behind = range(part.pages[-1] + 1, first + self.pool.pages_for(tokens))
        pages = {p for span in [*self.held, *self.parts] for p in span.pages}
        place = self.pool.extend(part, tokens)
        if place is None:
            is_aligned = first % self.pool.pages_for(tokens) == 0
            is_free = behind.stop <= self.pool.total and pages.isdisjoint(behind)
            assert tokens > self.pool.tokens or not (is_aligned and is_free)
        else:
            assert place.pages[0] == first
            assert self.pool.capacity(place) >= tokens
            self.parts.remove(part)
            self.held.append(place)

    @rule(tokens=st.integers(1, 220), share=st.floats(0, 1))
    def a_place_without_held_pages_can_be_taken(self, tokens: int, share: float) -> None:
        page = int(share * (self.pool.total - 1))
        place = self.pool.place_over(page, tokens)
        if place is None or tokens > self.pool.tokens:
            return
        assert page in place.pages
        pages = {p for span in [*self.held, *self.parts] for p in span.pages}
        assert self.pool.held(place) == len(pages & set(place.pages))
        if not self.pool.held(place):
            taken = self.pool.take(tokens)
            assert taken is not None and taken.pages[0] <= place.pages[0]
            assert len(taken.pages) == len(place.pages)
            self.held.append(taken)

    @invariant()
    def accounts_are_exact(self) -> None:
        spans = [*self.held, *self.parts]
        self.pool.check(spans)
        for span in spans:
            assert span.pages[0] >= 0 and span.pages[-1] < self.pool.total
            for other in spans:
                disjoint = set(span.pages).isdisjoint(other.pages)
                assert span == other or disjoint, "two spans share pages without sharing all"


TestSpans = SpanAccounts.TestCase
TestSpans.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_runs_grow_in_place_when_the_pages_behind_them_are_free() -> None:
    pool = Spans(16, page_tokens=4)
    first = pool.take(4)
    assert first == Place(range(0, 1))
    assert pool.grow(first, 5) == Place(range(0, 2))


def test_runs_move_when_the_pages_behind_them_are_taken() -> None:
    pool = Spans(16, page_tokens=4)
    first, second = pool.take(4), pool.take(4)
    assert (first, second) == (Place(range(0, 1)), Place(range(1, 2)))
    assert pool.grow(Place(range(0, 1)), 5) == Place(range(2, 4))
    pool.check([Place(range(1, 2)), Place(range(2, 4))])


def test_one_run_can_hold_the_whole_pool_though_that_is_no_power_of_two() -> None:
    pool = Spans(11, page_tokens=1)
    span = pool.take(1)
    while span is not None and pool.capacity(span) < 11:
        span = pool.grow(span, pool.capacity(span) + 1)
    assert span == Place(range(0, 11))
    assert pool.take(1) is None


def test_releasing_too_often_is_a_bug_that_shows() -> None:
    pool = Spans(2, page_tokens=1)
    span = pool.take(1)
    assert span is not None
    pool.release(span)
    with pytest.raises(AssertionError, match="too often"):
        pool.release(span)
