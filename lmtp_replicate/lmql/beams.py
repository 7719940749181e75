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
from dataclasses import dataclass
from functools import partial
from heapq import nlargest
from operator import attrgetter
from typing import Final
from weakref import WeakSet

from lmtp_replicate.client import TokenStream
from lmtp_replicate.client.path_memo import is_path
from lmtp_replicate.lmql.lengths import Lengths, Recent
from lmtp_replicate.lmql.shaped_stream import ShapedStream
from lmtp_replicate.protocol.messages import FinishReason, Generate, TokenItem

FORK: Final = 8
"""Tokens that are asked for beforehand; what follows LMQL asks for by itself."""
Ask = Callable[[Sequence[int], int, int], None]
"""Sends for so many tokens after a text, with so many of the likeliest ids each; nobody waits."""


@dataclass(frozen=True, slots=True)
class Beam:
    """A text that LMQL has under way, and the sum of its log probabilities."""

    text: tuple[int, ...]
    score: float

    def fallen(self, difference: float) -> Beam:
        """With another score."""
        return Beam(self.text, self.score + difference)


class Beams:
    """Those of one query. `ask` is None where nothing is to be asked for beforehand."""

    def __init__(self, ask: Ask | None) -> None:
        self._ask = ask
        self._end = 0
        self._streams: WeakSet[ShapedStream] = WeakSet()
        self._forecast = Forecast()
        self._beams: Sequence[Beam] = ()

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
            on_item = self._forecast.learn
        shaped = ShapedStream(stream, lengths, on_begin=on_begin, on_item=on_item)
        self._streams.add(shaped)
        return shaped

    def step(self, beams: Sequence[Beam]) -> None:
        """LMQL is about to go on from `beams`. Where they are equally long, as in a beam search,
        they are all that it has."""
        if len({len(beam.text) for beam in beams}) != 1:
            return
        self._beams = beams
        for stream in list(self._streams):
            stream.end_unless(any(stream.leads_to(beam.text) for beam in beams))

    def _find_end(self, start: int, hint: int | None) -> None:
        """LMQL tells the whole length of a variable again wherever it goes on with it. Behind the
        variable comes the template, of which the scores say nothing."""
        end = start + hint if hint is not None and hint > 0 else sys.maxsize
        self._end = end if start >= self._end else min(end, self._end)

    def _ask_ahead(self, ask: Ask, width: int) -> None:
        """LMQL asks for a stream: what is asked for now travels with it."""
        beams, self._beams = self._beams, ()
        ends = {place(stream.text) for stream in self._streams if not stream.is_over}
        for text in self._forecast.forks(beams, width, ends):
            if len(text) < self._end:
                ask(text, min(FORK, self._end - len(text)), width)


class Forecast:
    """Which texts a beam search will come to, from what streams have told."""

    def __init__(self) -> None:
        self._likeliest = Recent[Mapping[int, float]]()
        """What comes after a text, with log probabilities; nothing where it is at its end."""
        self._told = Recent[bool]()

    def learn(self, text: Sequence[int], item: TokenItem) -> None:
        """After `text` comes `item`."""
        self._likeliest[place(text)] = item.top_logprobs
        if item.finish_reason is FinishReason.STOP:
            self._likeliest[place((*text, item.token))] = {}

    def forks(
        self, beams: Sequence[Beam], width: int, ends: Collection[int]
    ) -> list[tuple[int, ...]]:
        """The texts, each told once, that the best `width` come to from `beams` on, and after which
        nothing is known nor on its way: at `ends` streams go on. A text after which nothing is
        known is taken to fall back no faster than the best of the others."""
        found: list[tuple[int, ...]] = []
        while known := [beam for beam in beams if self._knows(beam)]:
            reached = [beam for each in known for beam in self._after(each)]
            fall = max((self._best(beam) for beam in known), default=0.0)
            others = [beam.fallen(fall) for beam in beams if not self._knows(beam)]
            beams = nlargest(width, [*others, *reached], key=attrgetter("score"))
            found += [
                beam.text
                for beam in beams
                if beam in reached and not self._knows(beam) and place(beam.text) not in ends
            ]
        new = [text for text in found if place(text) not in self._told]
        for text in new:
            self._told[place(text)] = True
        return new

    def _knows(self, beam: Beam) -> bool:
        return place(beam.text) in self._likeliest

    def _best(self, beam: Beam) -> float:
        return max(self._likeliest[place(beam.text)].values(), default=0.0)

    def _after(self, beam: Beam) -> list[Beam]:
        likeliest = self._likeliest.get(place(beam.text), {})
        return [Beam((*beam.text, token), beam.score + p) for token, p in likeliest.items()]


def place(text: Sequence[int]) -> int:
    """A name for `text`."""
    return hash(tuple(text))
