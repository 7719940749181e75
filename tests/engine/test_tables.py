"""Page accounting of tables, driven by hypothesis through any sequence of operations."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lmtp_replicate.engine.pages import Place
from lmtp_replicate.engine.tables import Tables


@dataclass(eq=False)
class Holder:
    """A place of `tokens` tokens, or what is kept of it: `used`, the later it was held."""

    place: Place
    tokens: int
    used: int


class TableAccounts(RuleBasedStateMachine):
    held: list[Holder]

    @initialize(total=st.integers(1, 40), page_tokens=st.integers(1, 5))
    def start(self, total: int, page_tokens: int) -> None:
        self.pool = Tables(total, page_tokens)
        self.held = []
        self.clock = 0

    def hold(self, place: Place, tokens: int) -> None:
        assert (
            self.pool.capacity(place)
            >= tokens
            > self.pool.capacity(place) - max(self.pool.page_tokens, 1)
        )
        self.clock += 1
        self.held.append(Holder(place, tokens, self.clock))

    @rule(tokens=st.integers(1, 60))
    def take(self, tokens: int) -> None:
        free = self.pool.free
        place = self.pool.take(tokens)
        if place is None:
            assert self.pool.pages_for(tokens) > free == self.pool.free
        else:
            assert self.pool.free == free - self.pool.pages_for(tokens)
            self.hold(place, tokens)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), more=st.integers(0, 60))
    def grow(self, data: st.DataObject, more: int) -> None:
        holder = data.draw(st.sampled_from(self.held))
        grown = self.pool.grow(holder.place, holder.tokens + more)
        if grown is None:
            lacking = self.pool.pages_for(holder.tokens + more) - len(holder.place.pages)
            assert lacking > self.pool.free
        else:
            assert grown.pages[: len(holder.place.pages)] == holder.place.pages, "nothing moves"
            self.held.remove(holder)
            self.hold(grown, holder.tokens + more)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), share=st.floats(0, 1), more=st.integers(1, 30))
    def begin_as_another(self, data: st.DataObject, share: float, more: int) -> None:
        source = data.draw(st.sampled_from(self.held))
        common = round(share * source.tokens)
        begun = self.pool.begin(source.place, common)
        assert begun.pages == source.place.pages[: common // self.pool.page_tokens]
        place = self.pool.grow(begun, common + more)
        if place is None:
            self.pool.release(begun)
        else:
            self.hold(place, common + more)

    @precondition(lambda self: len(self.held) > 1)
    @rule(data=st.data(), at=st.floats(0, 1), to=st.floats(0, 1))
    def share_what_another_has_run(self, data: st.DataObject, at: float, to: float) -> None:
        follower, leader = data.draw(st.permutations(self.held))[:2]
        stop = round(to * min(follower.tokens, leader.tokens))
        start = round(at * stop)
        before = follower.place
        follower.place, copied = self.pool.share(before, leader.place, start, stop)
        size = self.pool.page_tokens
        whole = slice(start // size, stop // size)
        assert follower.place.pages[whole] == leader.place.pages[whole]
        assert follower.place.pages[: whole.start] == before.pages[: whole.start]
        assert (
            follower.place.pages[max(whole.start, whole.stop) :]
            == (before.pages[max(whole.start, whole.stop) :])
        )
        assert copied == (stop // size * size if whole.stop > whole.start else start)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.held))
        self.pool.release(holder.place)
        self.held.remove(holder)

    @rule(data=st.data(), tokens=st.integers(1, 200))
    def what_is_given_up_is_enough_and_no_more(self, data: st.DataObject, tokens: int) -> None:
        kept = [holder for holder in self.held if data.draw(st.booleans())]
        victims = self.pool.victims(kept, tokens, Place())
        if self.pool.pages_for(tokens) <= self.pool.free:
            return
        others = {p for h in self.held if h not in kept for p in h.place.pages}
        possible = self.pool.total - len(others) >= self.pool.pages_for(tokens)
        assert (victims is not None) == possible
        for holder in victims or []:
            assert self.pool.take(tokens) is None, "one of them was given up in vain"
            assert holder.used == min(h.used for h in kept if h in self.held)
            self.pool.release(holder.place)
            self.held.remove(holder)
        if possible:
            place = self.pool.take(tokens)
            assert place is not None
            self.hold(place, tokens)

    @invariant()
    def accounts_are_exact(self) -> None:
        self.pool.check([holder.place for holder in self.held])
        for holder in self.held:
            assert len(set(holder.place.pages)) == len(holder.place.pages)


TestTables = TableAccounts.TestCase
TestTables.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_pieces_that_lie_in_a_row_are_copied_and_cleared_at_once() -> None:
    pool = Tables(10, page_tokens=4)
    source, target = Place((3, 4, 8)), Place((5, 6, 7))
    assert pool.copies(source, target, 2, 11) == [(14, 22, 6), (32, 28, 3)]
    assert pool.clears(source, 5) == [(17, 3), (32, 4)]
    assert pool.clears(source, 12) == pool.copies(source, target, 5, 5) == []
    assert pool.addresses(source, 3, 9) == [15, 16, 17, 18, 19, 32]
