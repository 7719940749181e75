"""Which tokens' keys and values exist already, so that a stream need not run them again.

Known are the tokens of streams that have ended, or were paused, as long as nobody needs their
pages, and those of running streams, the ones to come in their prompts included: of streams that
arrive together with a common prefix one runs it, and the others follow. Results are the same with
any implementation; `NullPrefixIndex` remembers nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import NamedTuple, Protocol

from lmtp_replicate.engine.pages import PagePool, Place
from lmtp_replicate.engine.radix import Key, RadixTree
from lmtp_replicate.engine.stream import Stream

_LOOKED_AT = 8
"""Equally long matches that are compared: nearly always the first has all there is."""


@dataclass(slots=True, eq=False)
class Kept:
    """Tokens whose keys and values begin `place`, which has no page more than they need. `used`:
    the higher the later it was last of use."""

    tokens: Key
    place: Place
    used: int


class Match(NamedTuple):
    """The first `ready` keys and values that a stream needs are those that begin `place`. `leader`,
    an older stream, will have run the next ones too, up to `coming`. `kept`: what lies there, if
    the stream needs all of it."""

    place: Place
    ready: int
    coming: int
    leader: Stream | None = None
    kept: Kept | None = None


class PrefixIndex(Protocol):
    """Tokens → pages. No method changes the pool's contents, only its reference counts."""

    @property
    def kept_pages(self) -> int:
        """How many pages are held for what may come. Any thread."""

    evictions: int
    """How many kept prefixes were given up for their pages."""

    @property
    def kept(self) -> Sequence[Place]:
        """Those pages."""

    def match(self, stream: Stream) -> Match | None:
        """The best source of what `stream` needs before its first row. The match is held by
        nobody: even if `evict` gives its pages away it can be copied from, but only by the very
        next change of memory."""

    def take_over(self, match: Match, tokens: int) -> Place | None:
        """A place for `tokens` that begins with the match's keys and values, in exchange for what
        is kept there: whoever takes it gives all of it back. None where a copy is needed."""

    def start(self, stream: Stream) -> None:
        """`stream`, which has a place, follows nobody from now on: others may follow it."""

    def keep(self, stream: Stream) -> None:
        """`stream` is about to give its place back: hold the pages that are worth keeping."""

    def evict(self, tokens: int, old: Place) -> bool:
        """Give pages up until the pool can grow `old`, which may be empty, to `tokens`. False, and
        nothing has changed, if that cannot be."""


class NullPrefixIndex:
    """Remembers nothing."""

    kept_pages = 0
    evictions = 0
    kept: Sequence[Place] = ()

    def match(self, stream: Stream) -> Match | None:  # noqa: ARG002
        return None

    def take_over(self, match: Match, tokens: int) -> Place | None:  # noqa: ARG002
        return None

    def start(self, stream: Stream) -> None:
        pass

    def keep(self, stream: Stream) -> None:
        pass

    def evict(self, tokens: int, old: Place) -> bool:  # noqa: ARG002
        return False


class RadixPrefixIndex:
    """Finds the longest common prefix, to the token, and keeps what was used last."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._tree: RadixTree[Kept | Stream] = RadixTree()
        self._kept: set[Kept] = set()
        self._started: dict[Stream, Key] = {}
        self._clock = count()
        self._holds: Counter[int] = Counter()  # page → by how many of what is kept it is held
        self.evictions = 0

    @property
    def kept_pages(self) -> int:
        return len(self._holds)

    @property
    def kept(self) -> Sequence[Place]:
        return [kept.place for kept in self._kept]

    def match(self, stream: Stream) -> Match | None:
        # The first wanted row must be run in any case.
        length, sources = self._tree.longest(tuple(stream.tokens[: stream.first_row]))
        if not length:
            return None
        matches = [(_match(stream, s, length), s) for s in islice(sources, _LOOKED_AT)]
        best, source = max(matches, key=lambda pair: (pair[0].ready, pair[0].coming))
        if isinstance(source, Kept):
            source.used = next(self._clock)
        return best if best.coming else None

    def take_over(self, match: Match, tokens: int) -> Place | None:
        kept = match.kept
        if kept is None:
            return None
        place = self._pool.extend(kept.place, tokens)
        if place is not None:
            self._remove(kept)
        return place

    def start(self, stream: Stream) -> None:
        key = tuple(stream.tokens[: stream.to_run])
        self._tree.insert(key, stream)
        self._started[stream] = key

    def keep(self, stream: Stream) -> None:
        key = self._started.pop(stream, None)
        if key is not None:
            self._tree.remove(key, stream)
        tokens = tuple(stream.tokens[: stream.cached])
        if not tokens or self._is_known(tokens):
            return
        for source in self._tree.prefixes(tokens):
            if isinstance(source, Kept):
                self._forget(source)  # the longer one serves as well
        assert stream.place is not None
        place = self._pool.part(stream.place, len(tokens))
        self._pool.retain(place)
        self._holds.update(place.pages)
        kept = Kept(tokens, place, next(self._clock))
        self._kept.add(kept)
        self._tree.insert(tokens, kept)

    def evict(self, tokens: int, old: Place) -> bool:
        victims = self._pool.victims(self._kept, tokens, old)
        if victims is None:
            return False
        for kept in victims:
            self._forget(kept)
        self.evictions += len(victims)
        return True

    def _is_known(self, tokens: Key) -> bool:
        """Whether something kept begins with `tokens`; that was of use just now."""
        length, sources = self._tree.longest(tokens)
        if length == len(tokens):
            for source in islice(sources, _LOOKED_AT):
                if isinstance(source, Kept):
                    source.used = next(self._clock)
                    return True
        return False

    def _forget(self, kept: Kept) -> None:
        self._remove(kept)
        self._pool.release(kept.place)

    def _remove(self, kept: Kept) -> None:
        """Know no more of `kept`, whose pages are somebody else's business now."""
        self._tree.remove(kept.tokens, kept)
        self._kept.remove(kept)
        for page in kept.place.pages:
            self._holds[page] -= 1
            if not self._holds[page]:
                del self._holds[page]


def _match(stream: Stream, source: Kept | Stream, length: int) -> Match:
    if isinstance(source, Kept):
        is_whole = length == len(source.tokens)
        return Match(source.place, length, length, kept=source if is_whole else None)
    assert source.place is not None
    ready = min(length, source.cached)
    # Following none but older streams keeps the order of arrival, and makes no circles.
    if ready < length and source.arrival < stream.arrival:
        return Match(source.place, ready, length, source)
    return Match(source.place, ready, ready)
