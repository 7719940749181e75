"""The streams of LMQL's beams: ended where no beam goes along them any more, and those that LMQL
will need soon asked for beforehand.

A beam that leaves the likeliest continuation needs a stream of its own from the fork on, and LMQL
asks for it when it gets there: one prediction after the other. But a stream tells the rivals of its
tokens ahead of LMQL. Where the scores say that a fork will be among the best, it is asked for
together with the present one, and is known when LMQL comes by.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from heapq import nlargest
from operator import attrgetter
from typing import Final
from weakref import WeakSet

from lmtp_replicate.client import TokenStream
from lmtp_replicate.client.path_memo import is_path
from lmtp_replicate.lmql.lengths import Lengths, Recent
from lmtp_replicate.lmql.shaped_stream import ShapedStream, place_after, place_of
from lmtp_replicate.protocol.messages import FinishReason, Generate, TokenItem

FORK: Final = 8
"""Tokens that are asked for beforehand; what follows LMQL asks for by itself."""
MOST_UNUSED: Final = 8
"""While LMQL has not come to so many of what was asked for, no more is."""
Ask = Callable[[Sequence[int], int, int], None]
"""Sends for so many tokens after a text, with so many of the likeliest ids each; nobody waits."""


@dataclass(frozen=True)
class Beam:
    """A text that LMQL has under way, and the sum of its log probabilities."""

    text: tuple[int, ...]
    score: float

    @cached_property
    def place(self) -> int:
        """See `place_of`."""
        return place_of(self.text)


class Beams:
    """Those of one query. `ask` is None where nothing is to be asked for beforehand."""

    def __init__(self, ask: Ask | None) -> None:
        self._ask = ask
        self._end = 0
        self._streams: WeakSet[ShapedStream] = WeakSet()
        self._forecast = Forecast()
        self._beams: Sequence[Beam] = ()
        self._unused: set[int] = set()
        """What was asked for beforehand and LMQL has not come to."""

    @property
    def are_read(self) -> bool:
        """Whether any stream was made for beams."""
        return bool(self._streams)

    def shaped(self, stream: TokenStream, lengths: Lengths, hint: int | None) -> ShapedStream:
        """`stream`, which must not have begun, for one beam. For `hint` see `Lengths.fit`."""
        op = stream.op
        assert isinstance(op, Generate)
        on_begin, on_item = None, None
        if self._ask is not None and is_path(op):
            self._find_end(len(op.prompt), hint)
            on_begin = partial(self._ask_ahead, self._ask, op.top_logprobs)
            on_item = partial(self._hear, self._ask, op.top_logprobs)
        shaped = ShapedStream(stream, lengths, on_begin=on_begin, on_item=on_item)
        self._unused.discard(shaped.place)
        self._streams.add(shaped)
        return shaped

    def step(self, beams: Sequence[Beam]) -> None:
        """LMQL is about to go on from `beams`. Where they are equally long, as in a beam search,
        they are all that it has."""
        is_search = len({len(beam.text) for beam in beams}) == 1
        self._beams = beams if is_search else ()
        if not is_search:
            return
        for stream in list(self._streams):
            stream.end_unless(any(stream.leads_to(beam.text) for beam in beams))

    def _find_end(self, start: int, hint: int | None) -> None:
        """LMQL tells the whole length of a variable again wherever it goes on with it. Behind the
        variable comes the template, of which the scores say nothing."""
        end = start + hint if hint is not None and hint > 0 else sys.maxsize
        self._end = end if start >= self._end else min(end, self._end)

    def _hear(self, ask: Ask, width: int, place: int, item: TokenItem) -> None:
        self._forecast.learn(place, item)
        self._ask_ahead(ask, width)

    def _ask_ahead(self, ask: Ask, width: int) -> None:
        """Where LMQL asks for a stream just now, what is asked for here travels with it."""
        ends = {stream.place for stream in self._streams if not stream.is_over}
        for text in self._forecast.forks(self._beams, width, ends):
            if len(text) < self._end and len(self._unused) < MOST_UNUSED:
                self._unused.add(place_of(text))
                ask(text, min(FORK, self._end - len(text)), width)


@dataclass(frozen=True, slots=True)
class _Branch:
    """What a beam may become, `tail` later."""

    beam: Beam
    tail: tuple[int, ...]
    place: int
    score: float

    @property
    def text(self) -> tuple[int, ...]:
        return self.beam.text + self.tail

    def after(self, token: int, logprob: float) -> _Branch:
        place = place_after(self.place, token)
        return _Branch(self.beam, (*self.tail, token), place, self.score + logprob)


class Forecast:
    """Which texts a beam search will come to, from what streams have told."""

    def __init__(self) -> None:
        self._likeliest = Recent[Mapping[int, float]]()
        """What comes after a text, with log probabilities; nothing where it is at its end."""
        self._told = Recent[bool]()

    def learn(self, place: int, item: TokenItem) -> None:
        """After the text of `place` comes `item`."""
        self._likeliest[place] = item.top_logprobs
        if item.finish_reason is FinishReason.STOP:
            self._likeliest[place_after(place, item.token)] = {}

    def forks(
        self, beams: Sequence[Beam], width: int, ends: Collection[int]
    ) -> list[tuple[int, ...]]:
        """The texts, each told once, that the best `width` come to from `beams` on, and after which
        nothing is known nor on its way: at `ends` streams go on. A text after which nothing is
        known is taken to fall back no faster than the best of the others."""
        found: list[_Branch] = []
        branches = [_Branch(beam, (), beam.place, beam.score) for beam in beams]
        while known := [branch for branch in branches if branch.place in self._likeliest]:
            fall = max(self._best(branch.place) for branch in known)
            stuck = [
                replace(branch, score=branch.score + fall)
                for branch in branches
                if branch.place not in self._likeliest
            ]
            reached = [after for branch in known for after in self._after(branch)]
            branches = nlargest(width, [*stuck, *reached], key=attrgetter("score"))
            found += [branch for branch in branches if branch not in stuck]
        news = [branch for branch in found if self._is_news(branch.place, ends)]
        for branch in news:
            self._told[branch.place] = True
        return [branch.text for branch in news]

    def _is_news(self, place: int, ends: Collection[int]) -> bool:
        return not (place in self._likeliest or place in ends or place in self._told)

    def _best(self, place: int) -> float:
        return max(self._likeliest[place].values(), default=0.0)

    def _after(self, branch: _Branch) -> list[_Branch]:
        return [branch.after(*each) for each in self._likeliest[branch.place].items()]
