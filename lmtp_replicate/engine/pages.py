"""Which tokens' keys and values lie where: page accounting, without torch.

The pool is `total` pages of `page_tokens` tokens each, and a stream has a `Place`: pages in the
order of its tokens. Pages are counted by reference, so that a prefix index can keep a finished
stream's pages: just those with something in them, whatever their number. There are two kinds of
pools: `Spans`, in which a stream's pages lie one after another, and `Tables`, in which they lie
anywhere and streams have the pages of a common prefix in common.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar


@dataclass(frozen=True, slots=True)
class Place:
    """Pages, in the order of the tokens whose keys and values are in them."""

    pages: Sequence[int] = ()


class Copy(NamedTuple):
    """Keys and values of `length` tokens to be copied between addresses, in tokens, of the pool."""

    source: int
    target: int
    length: int


class Clear(NamedTuple):
    """`length` tokens of the pool, from address `first` on, to be filled with zeros."""

    first: int
    length: int


class Kept(Protocol):
    """What may be given up for its pages."""

    @property
    def place(self) -> Place:
        """The pages."""

    @property
    def used(self) -> int:
        """The higher the later it was last of use."""


AnyKept = TypeVar("AnyKept", bound=Kept)


class PagePool(ABC):
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

    def capacity(self, place: Place) -> int:
        """How many tokens `place` holds."""
        return len(place.pages) * self.page_tokens

    def address(self, place: Place, index: int) -> int:
        """Where in the pool, counted in tokens, the place's token `index` lies."""
        page, rest = divmod(index, self.page_tokens)
        return place.pages[page] * self.page_tokens + rest

    def addresses(self, place: Place, start: int, stop: int) -> list[int]:
        """The addresses of the place's tokens `start..stop`."""
        rows = self._rows((place,), start, stop)
        return [address for (first,), n in rows for address in range(first, first + n)]

    def part(self, place: Place, tokens: int) -> Place:
        """The pages of `place` that its first `tokens` tokens fill, the last one perhaps partly."""
        return Place(place.pages[: -(-tokens // self.page_tokens)])

    def copies(self, source: Place, target: Place, start: int, stop: int) -> list[Copy]:
        """What puts the tokens `start..stop` of `source` where those of `target` lie."""
        rows = self._rows((source, target), start, stop)
        return [Copy(first, second, length) for (first, second), length in rows]

    def clears(self, place: Place, start: int) -> list[Clear]:
        """What zeroes the place's tokens from `start` on."""
        rows = self._rows((place,), start, self.capacity(place))
        return [Clear(first, length) for (first,), length in rows]

    @classmethod
    @abstractmethod
    def rounded(cls, pages: int) -> int:
        """How many pages a place of at least so many has."""

    def pages_for(self, tokens: int) -> int:
        """How many pages a place for `tokens` has."""
        return self.rounded(max(1, -(-tokens // self.page_tokens)))

    def take(self, tokens: int) -> Place | None:
        """A free place for `tokens`, now held once; None when there is none."""
        return self.grow(Place(), tokens)

    @abstractmethod
    def begin(self, source: Place, tokens: int) -> Place:
        """What a stream's place may begin with that has the first `tokens` tokens of `source`, now
        held once more: to be grown. Empty where nothing is shared."""

    @abstractmethod
    def share(self, place: Place, source: Place, start: int, stop: int) -> tuple[Place, int]:
        """In exchange for `place`, whose tokens `start..stop` are to be those of `source`, one that
        shares as many of these as can be, and the first token that must still be copied."""

    @abstractmethod
    def extend(self, place: Place, tokens: int) -> Place | None:
        """In exchange for `place`, which is held once, one that begins with it and holds `tokens`;
        None, and `place` is still held, where that cannot be."""

    @abstractmethod
    def grow(self, place: Place, tokens: int) -> Place | None:
        """A larger place in exchange for `place`, which may be empty; None, and `place` is still
        held, when there is none. If its first page is another the caller copies what it held."""

    @abstractmethod
    def victims(self, kept: Iterable[AnyKept], tokens: int, old: Place) -> list[AnyKept] | None:
        """Which of `kept` to release so that `old`, which is empty or held once, can be grown to
        `tokens`: rather what was not of use lately. None if that cannot be."""

    def retain(self, place: Place) -> None:
        """Hold `place`'s pages, which somebody holds already, once more."""
        assert all(self._references[page] for page in place.pages), f"{place} is not held"
        self._hold(place)

    def release(self, place: Place) -> None:
        """Hold `place` once less; pages nobody holds any more are free."""
        for page in place.pages:
            assert self._references[page] > 0, f"page {page} of {place} was released too often"
            self._references[page] -= 1
            self._free += self._references[page] == 0

    def check(self, held: Iterable[Place]) -> None:
        """Assert that exactly the places of `held` are held, each as often as it is named."""
        expected = Counter(page for place in held for page in place.pages)
        assert {page: n for page, n in enumerate(self._references) if n} == dict(expected)
        assert self._free == self.total - len(expected)

    def _hold(self, place: Place) -> Place:
        for page in place.pages:
            self._free -= self._references[page] == 0
            self._references[page] += 1
        return place

    def _rows(
        self, places: Sequence[Place], start: int, stop: int
    ) -> Iterator[tuple[list[int], int]]:
        """The tokens `start..stop` in as few pieces as lie in one row in each of `places`: their
        addresses there, and their number."""
        first, length = [0], 0
        while start < stop:
            taken = min(stop, (start // self.page_tokens + 1) * self.page_tokens) - start
            here = [self.address(place, start) for place in places]
            if length and here != [at + length for at in first]:
                yield first, length
                length = 0
            first = first if length else here
            length += taken
            start += taken
        if length:
            yield first, length
