"""Which tokens' keys and values lie where: page accounting, without torch.

The pool is `total` pages of `page_tokens` tokens each. A stream owns a `Span`: consecutive pages,
a power of two of them and aligned to that number (or all pages at once). So attention can read a
stream as one view, and neighbouring spans of one size as one batch, without gathering; growing a
span doubles it, in place when the pages behind it are free and by one copy otherwise.
Pages are counted by reference, so that a prefix index can keep a finished stream's pages: just
those with something in them, whatever their number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Span:
    """`count` consecutive pages from page `first` on."""

    first: int
    count: int

    @property
    def pages(self) -> range:
        return range(self.first, self.first + self.count)

    def common(self, other: Span) -> int:
        """How many pages are in both."""
        return len(range(max(self.first, other.first), min(self.pages.stop, other.pages.stop)))


class Copy(NamedTuple):
    """Keys and values of `length` tokens to be copied between places, in tokens, of the pool."""

    source: int
    target: int
    length: int


class Clear(NamedTuple):
    """`length` tokens of the pool, from place `first` on, to be filled with zeros."""

    first: int
    length: int


class PagePool:
    """Reference counts of `total` pages of `page_tokens` tokens."""

    def __init__(self, total: int, page_tokens: int) -> None:
        if total < 1:
            raise ValueError(f"a pool needs at least one page, not {total}")
        self.total = total
        self.page_tokens = page_tokens
        self._references = [0] * total
        self._free = total

    @property
    def free(self) -> int:
        """Number of pages nobody refers to."""
        return self._free

    @property
    def tokens(self) -> int:
        """How many tokens the whole pool holds."""
        return self.total * self.page_tokens

    def pages_for(self, tokens: int) -> int:
        """The size of a span that holds `tokens`: a power of two of pages, or the whole pool."""
        exact = max(1, -(-tokens // self.page_tokens))
        return min(1 << (exact - 1).bit_length(), self.total)

    def capacity(self, span: Span) -> int:
        """How many tokens `span` holds."""
        return span.count * self.page_tokens

    def place(self, span: Span, index: int) -> int:
        """Where in the pool, counted in tokens, the span's token `index` lies."""
        return span.first * self.page_tokens + index

    def held(self, span: Span) -> int:
        """How many of `span`'s pages somebody refers to."""
        return span.count - self._references[span.first : span.pages.stop].count(0)

    def part(self, span: Span, tokens: int) -> Span:
        """The pages of `span` that its first `tokens` tokens fill, the last one perhaps partly."""
        return Span(span.first, -(-tokens // self.page_tokens))

    def place_over(self, page: int, tokens: int) -> Span | None:
        """The span with `page` in it that `take` might give for `tokens`, were it free."""
        count = self.pages_for(tokens)
        first = page - page % count
        return Span(first, count) if first + count <= self.total else None

    def take(self, tokens: int) -> Span | None:
        """The lowest free span for `tokens`, now held once; None when there is none."""
        count = self.pages_for(tokens)
        if tokens > self.tokens or count > self._free:
            return None
        for first in range(0, self.total - count + 1, count):
            if not any(self._references[first : first + count]):
                return self._hold(Span(first, count))
        return None

    def extend(self, span: Span, tokens: int) -> Span | None:
        """In exchange for `span`, which is held once, one that begins with it and holds `tokens`;
        None, and `span` is still held, where the pages behind it are not free or not aligned."""
        if tokens > self.tokens:
            return None
        place = self.place_over(span.first, tokens)
        if place is None or place.first != span.first or self.held(place) != span.count:
            return None
        self.release(span)
        return self._hold(place)

    def grow(self, span: Span, tokens: int) -> Span | None:
        """A larger span in exchange for `span`, in place when possible; None, and `span` is still
        held, when there is none. If `first` has changed the caller copies what `span` held."""
        extended = self.extend(span, tokens)
        if extended is not None:
            return extended
        self.release(span)
        grown = self.take(tokens)
        if grown is None:
            self._hold(span)
        return grown

    def retain(self, span: Span) -> None:
        """Hold `span`'s pages, which somebody holds already, once more."""
        assert all(self._references[page] for page in span.pages), f"{span} is not held"
        self._hold(span)

    def release(self, span: Span) -> None:
        """Hold `span` once less; pages nobody holds any more are free."""
        for page in span.pages:
            assert self._references[page] > 0, f"page {page} of {span} was released too often"
            self._references[page] -= 1
            self._free += self._references[page] == 0

    def check(self, held: Iterable[Span]) -> None:
        """Assert that exactly the spans of `held` are held, each as often as it is named."""
        expected = Counter(page for span in held for page in span.pages)
        assert {page: n for page, n in enumerate(self._references) if n} == dict(expected)
        assert self._free == self.total - len(expected)

    def _hold(self, span: Span) -> Span:
        for page in span.pages:
            self._free -= self._references[page] == 0
            self._references[page] += 1
        return span
