"""Places whose pages lie one after another, for attention that reads keys and values as views.

A *span* is a power of two of pages and aligned to that number (or all pages at once). So attention
can read a stream as one view, and neighbouring spans of one size as one batch, without gathering;
growing a span doubles it, in place when the pages behind it are free and by one copy otherwise.
What streams have in common is copied: on a CPU that costs a thousandth of running it.
"""

from __future__ import annotations

from collections.abc import Iterable

from lmtp_replicate.engine.pages import AnyKept, PagePool, Place


class Spans(PagePool):
    """A pool whose places are spans, or the first pages of spans."""

    @classmethod
    def rounded(cls, pages: int) -> int:
        return 1 << (pages - 1).bit_length()

    def pages_for(self, tokens: int) -> int:
        return min(super().pages_for(tokens), self.total)

    def begin(self, source: Place, tokens: int) -> Place:  # noqa: ARG002
        return Place()

    def share(
        self,
        place: Place,
        source: Place,  # noqa: ARG002
        start: int,
        stop: int,  # noqa: ARG002
    ) -> tuple[Place, int]:
        return place, start

    def extend(self, place: Place, tokens: int) -> Place | None:
        if tokens > self.tokens or not place.pages:
            return None
        longer = self.place_over(place.pages[0], tokens)
        if longer is None or longer.pages[0] != place.pages[0]:
            return None
        if self.held(longer) != len(place.pages):
            return None
        self.release(place)
        return self._hold(longer)

    def grow(self, place: Place, tokens: int) -> Place | None:
        extended = self.extend(place, tokens)
        if extended is not None:
            return extended
        self.release(place)
        grown = self._lowest(tokens)
        if grown is None:
            self._hold(place)
        return grown

    def victims(self, kept: Iterable[AnyKept], tokens: int, old: Place) -> list[AnyKept] | None:
        """Among the spans that would do, the one whose victims were of use longest ago."""
        over: dict[Place, list[AnyKept]] = {}
        for each in kept:
            # One reaches into other spans too, but giving it up is enough for this one.
            span = self.place_over(each.place.pages[0], tokens)
            if span is not None:
                over.setdefault(span, []).append(each)
        for span in sorted(over, key=lambda span: max(each.used for each in over[span])):
            free = [*(each.place for each in over[span]), old]
            if self.held(span) == sum(_common(span, place) for place in free):
                return over[span]
        return None

    def held(self, span: Place) -> int:
        """How many of `span`'s pages somebody refers to."""
        first, end = span.pages[0], span.pages[-1] + 1
        return len(span.pages) - self._references[first:end].count(0)

    def place_over(self, page: int, tokens: int) -> Place | None:
        """The span with `page` in it that `take` might give for `tokens`, were it free."""
        count = self.pages_for(tokens)
        first = page - page % count
        return _span(first, count) if first + count <= self.total else None

    def _lowest(self, tokens: int) -> Place | None:
        """The lowest free span for `tokens`, now held once."""
        count = self.pages_for(tokens)
        if tokens > self.tokens or count > self._free:
            return None
        for first in range(0, self.total - count + 1, count):
            if not any(self._references[first : first + count]):
                return self._hold(_span(first, count))
        return None


def _span(first: int, count: int) -> Place:
    return Place(range(first, first + count))


def _common(one: Place, other: Place) -> int:
    """How many pages are in both, whose pages lie one after another."""
    if not one.pages or not other.pages:
        return 0
    first, last = max(one.pages[0], other.pages[0]), min(one.pages[-1], other.pages[-1])
    return max(0, last - first + 1)
