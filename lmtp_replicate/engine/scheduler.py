"""Who is in the next step, and with how many tokens. No torch here.

Every step runs the newest token of each decoding stream and then chunks of prompts, within the room
that `Pace` tells. That goes to those first that arrived first, and of those that arrived between
the same two steps to who has least to run: all others wait the shorter for it. (What a long prompt
must leave to others goes to short ones behind it.) The order of arrival is the guard against
starvation: nobody overtakes in the queue for pages, nobody who came a step later gets room before,
and when pages run out the youngest stream is paused, so the oldest always gets on. A stream whose
next tokens an older one is running too (its leader) runs nothing: it copies them step by step,
until it needs others.
"""

from __future__ import annotations

import logging
from bisect import insort
from collections import Counter

from lmtp_replicate.engine.pace import Pace, Room
from lmtp_replicate.engine.pages import PagePool, Place
from lmtp_replicate.engine.plan import Plan, Work
from lmtp_replicate.engine.prefix import Match, PrefixIndex
from lmtp_replicate.engine.stream import Stream

logger = logging.getLogger(__name__)

_LOGGED = 500
"""Every so many streams the log tells the statistics."""
WORTH_WAITING = 16
"""A stream follows another only for so many tokens or more; fewer are run sooner than awaited."""
MOST_ROWS = 256
"""Scored positions in one step: each costs a row of logits as wide as the vocabulary."""


class Scheduler:
    """Streams from arrival to end. With `whole_prompts` a prompt is never cut (for models whose
    own cache cannot be continued by more than one token at a time)."""

    def __init__(
        self,
        pool: PagePool,
        pace: Pace,
        prefix: PrefixIndex,
        *,
        max_streams: int,
        whole_prompts: bool = False,
    ) -> None:
        self._pool = pool
        self._pace = pace
        self._prefix = prefix
        self._max_streams = max_streams
        self._whole_prompts = whole_prompts
        self.waiting: list[Stream] = []  # both in order of arrival
        self.running: list[Stream] = []
        self._round = 0
        self._counted = Counter(places=0, pauses=0, prompt_tokens=0, hit_tokens=0, run_tokens=0)

    @property
    def streams(self) -> list[Stream]:
        return [*self.running, *self.waiting]

    def add(self, stream: Stream) -> None:
        """Take part from the next step on, as soon as there is room."""
        stream.round = self._round
        insort(self.waiting, stream, key=_arrival)

    def schedule(self) -> Plan:
        """The next step; `advance` must follow once it has been run. Without works only when
        there are no streams."""
        plan = Plan()
        self._round += 1
        self._catch_up(plan)
        self._grow_running(plan)
        self._admit_waiting(plan)
        plan.works = [Work(s, s.cached, 1) for s in self.running if s.is_decoding]
        plan.decoding = len(plan.works)
        prompts = self._prompts()
        plan.works += self._chunks(prompts, self._pace.room(plan.decoding, len(prompts)))
        assert plan.works or not self.streams, "streams wait although nothing runs"
        return plan

    def advance(self, plan: Plan) -> None:
        """The plan's tokens have keys and values now."""
        for work in plan.works:
            work.stream.cached = work.stop
            self._counted["run_tokens"] += work.length

    def statistics(self) -> dict[str, int]:
        """places: how often a stream got a place (again after a pause); prompt_tokens: how many
        tokens those streams stood on, and hit_tokens: how many of these were known and not run.
        run_tokens: all that were run. kept_tokens: the size of the pages kept for streams to come;
        evictions: how often some were given up. Any thread."""
        kept = self._prefix.kept_pages * self._pool.page_tokens
        return {**self._counted, "kept_tokens": kept, "evictions": self._prefix.evictions}

    def finish(self, stream: Stream) -> None:
        """The stream takes part no more, and its pages are free or the prefix index's."""
        if stream in self.waiting:
            self.waiting.remove(stream)
            return
        self.running.remove(stream)
        self._give_back(stream)

    def check(self) -> None:
        """Assert our invariants: every page is free, kept or a running stream's."""
        places = [stream.place for stream in self.running]
        self._pool.check([*(place for place in places if place is not None), *self._prefix.kept])
        assert None not in places
        assert all(stream.place is None and stream.cached == 0 for stream in self.waiting)
        assert len(self.running) <= self._max_streams
        for group in (self.running, self.waiting):
            assert group == sorted(group, key=_arrival)

    def _grow_running(self, plan: Plan) -> None:
        """Make room for every decoding stream's next token, the oldest first."""
        for stream in list(self.running):
            while stream.place is not None and stream.to_run > self._pool.capacity(stream.place):
                if not self._grow(stream, plan):
                    self._pause(self.running[-1])  # perhaps the stream itself

    def _grow(self, stream: Stream, plan: Plan) -> bool:
        old = stream.place
        assert old is not None
        new = self._grown(old, stream.to_run)
        if new is None:
            return False
        stream.place = new
        if new.pages[0] != old.pages[0]:
            plan.changes += self._pool.copies(old, new, 0, stream.cached)
        self._clear_rest(stream, new, plan)
        return True

    def _grown(self, old: Place, tokens: int) -> Place | None:
        """In exchange for `old`, a place for `tokens`, for which kept prefixes are given up; None,
        and `old` is still held, if there is none even so."""
        while (new := self._pool.grow(old, tokens)) is None:
            if not self._prefix.evict(tokens, old):
                return None
        return new

    def _pause(self, stream: Stream) -> None:
        self._counted["pauses"] += 1
        self._give_back(stream)
        self.running.remove(stream)
        insort(self.waiting, stream, key=_arrival)

    def _give_back(self, stream: Stream) -> None:
        assert stream.place is not None
        self._prefix.keep(stream)
        self._pool.release(stream.place)
        stream.pause()

    def _admit_waiting(self, plan: Plan) -> None:
        while self.waiting and len(self.running) < self._max_streams:
            stream = self.waiting[0]
            match = self._prefix.match(stream)
            stream.place = self._take_over(stream, match) or self._take(stream, match)
            if stream.place is None:
                return
            self._count_place(stream)
            self._reuse(stream, match, plan)
            self._clear_rest(stream, stream.place, plan)
            insort(self.running, self.waiting.pop(0), key=_arrival)

    def _take_over(self, stream: Stream, match: Match | None) -> Place | None:
        """The place of a prefix that all of `stream` continues, as the ops of a query do one after
        another: nothing is copied, and others still find the prefix, in the stream."""
        if match is None:
            return None
        place = self._prefix.take_over(match, stream.to_run)
        if place is not None:
            stream.cached = match.ready
            self._counted["hit_tokens"] += match.ready
        return place

    def _take(self, stream: Stream, match: Match | None) -> Place | None:
        # Held before anything is given up for the rest of the place.
        begun = self._pool.begin(match.place, match.ready) if match else Place()
        place = self._grown(begun, stream.to_run)
        if place is None:
            self._pool.release(begun)
        return place

    def _count_place(self, stream: Stream) -> None:
        self._counted["places"] += 1
        self._counted["prompt_tokens"] += stream.to_run
        if self._counted["places"] % _LOGGED == 0:
            logger.info("Streams, their tokens and what of them was known: %s", self.statistics())

    def _catch_up(self, plan: Plan) -> None:
        """Give followers what their leaders have run by now."""
        for stream in self.running:
            if stream.leader is not None:
                self._reuse(stream, self._prefix.match(stream), plan)

    def _reuse(self, stream: Stream, match: Match | None, plan: Plan) -> None:
        leader, stream.leader = stream.leader, None
        if match is not None:
            self._copy(stream, match, plan)
            least = 1 if match.leader is leader else WORTH_WAITING
            if match.coming - stream.cached >= least:
                stream.leader = match.leader
        if stream.leader is None:
            self._prefix.start(stream)

    def _copy(self, stream: Stream, match: Match, plan: Plan) -> None:
        assert stream.place is not None
        new = match.ready - stream.cached
        if new <= 0:
            return
        stream.place, start = self._pool.share(
            stream.place, match.place, stream.cached, match.ready
        )
        plan.changes += self._pool.copies(match.place, stream.place, start, match.ready)
        stream.cached = match.ready
        self._counted["hit_tokens"] += new

    def _clear_rest(self, stream: Stream, place: Place, plan: Plan) -> None:
        """Zero what the stream will not have written when attention first reads its place as part
        of a batch: masked numbers count nothing only if they are finite, and a stream whose
        arithmetic overflowed may have left others there."""
        plan.changes += self._pool.clears(place, stream.to_run)

    def _prompts(self) -> list[Stream]:
        """Those whose prompts are to be run, in their order."""
        least = {s: s.missing for s in self.running if not s.is_decoding and s.leader is None}
        for follower in self.running:
            if follower.leader in least:
                least[follower.leader] = min(least[follower.leader], follower.missing)
        return sorted(least, key=lambda stream: (stream.round, least[stream]))

    def _chunks(self, prompts: list[Stream], room: Room) -> list[Work]:
        works: list[Work] = []
        used, rows = 0, MOST_ROWS
        for stream in prompts:
            count, is_short = stream.missing, stream.is_short
            if not self._whole_prompts:
                if is_short is None and room.short > room.long:
                    is_short = room.is_short(count)
                left = max(0, (room.short if is_short else room.long) - used)
                unwanted = max(0, stream.first_row - stream.cached)
                count = min(count, left, unwanted + rows)
                if count == 1 < stream.missing:
                    # Attention reads single tokens in one batch, beyond what this stream has
                    # written: only its last token may be run alone.
                    count = 0 if works else 2
            if count:
                stream.is_short = is_short
                works.append(Work(stream, stream.cached, count))
                used += count
                rows -= len(works[-1].rows)
        return works


def _arrival(stream: Stream) -> int:
    return stream.arrival
