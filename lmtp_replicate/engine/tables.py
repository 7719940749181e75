"""Places whose pages lie anywhere, so that what streams have in common is in memory once.

A stream that begins as another did holds that one's pages as far as it needs all of their tokens,
and a copy of the first page that it needs a part of. So nobody ever writes into a page that others
hold: all tokens of a shared page have been run. A place grows page by page, and nothing is moved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from lmtp_replicate.engine.pages import AnyKept, PagePool, Place


class Tables(PagePool):
    """A pool whose places are any pages."""

    def __init__(self, total: int, page_tokens: int) -> None:
        super().__init__(total, page_tokens)
        self._unused = [*reversed(range(total))]  # the next one to be taken is the last

    @classmethod
    def rounded(cls, pages: int) -> int:
        return pages

    def begin(self, source: Place, tokens: int) -> Place:
        place = Place(tuple(source.pages[: tokens // self.page_tokens]))
        self.retain(place)
        return place

    def share(self, place: Place, source: Place, start: int, stop: int) -> tuple[Place, int]:
        first, end = start // self.page_tokens, stop // self.page_tokens
        if end <= first:
            return place, start
        shared = source.pages[first:end]
        self.retain(Place(shared))
        self.release(Place(place.pages[first:end]))
        pages = (*place.pages[:first], *shared, *place.pages[end:])
        return Place(pages), end * self.page_tokens

    def extend(self, place: Place, tokens: int) -> Place | None:
        more = max(0, self.pages_for(tokens) - len(place.pages))
        if more > self._free:
            return None
        new = self._hold(Place([self._unused.pop() for _ in range(more)]))
        return Place((*place.pages, *new.pages))

    def grow(self, place: Place, tokens: int) -> Place | None:
        return self.extend(place, tokens)

    def victims(self, kept: Iterable[AnyKept], tokens: int, old: Place) -> list[AnyKept] | None:
        """Those that were of use longest ago, until their pages are enough."""
        lacking = self.pages_for(tokens) - len(old.pages) - self._free
        chosen: list[AnyKept] = []
        given_back: Counter[int] = Counter()
        for each in sorted(kept, key=lambda each: each.used):
            chosen.append(each)
            given_back.update(each.place.pages)
            lacking -= sum(given_back[page] == self._references[page] for page in each.place.pages)
            if lacking <= 0:
                return chosen
        return None

    def release(self, place: Place) -> None:
        super().release(place)
        self._unused += [page for page in reversed(place.pages) if not self._references[page]]
