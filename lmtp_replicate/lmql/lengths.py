"""How many tokens of a stream LMQL can use.

LMQL 0.7.3 files a whole stream under the mask of its first token. So of a stream under a whitelist
it uses one token, and more only while the next whitelist is the same: hardly ever within `X in
[...]`, often where a REGEX or INT allows ten digits. Where the query does not say how many tokens
there may be it asks for 16, then for 16 more, and so on. And of a stream that runs on into the
template's text and the next variable it uses that too, as long as the model writes what the query
says.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Final, Generic, TypeVar

from lmtp_replicate.protocol.masks import Mask
from lmtp_replicate.protocol.messages import Generate

CHUNK: Final = 16
"""What LMQL asks for without a hint, unless it is told otherwise by `chunksize=`."""
WITHOUT_HINT: Final = 64
"""What it gets then."""
BEAM: Final = 32
"""Beams part from the likeliest path sooner or later, and what follows on it then is not used."""
FEW: Final = 9
"""A whitelist of no more ids is taken for the beginnings of a few texts, which do not repeat."""
GROWTH: Final = 4
"""One of more ids, or one that has stayed before, gets so many tokens: LMQL waits for four anyway
before it looks at the first. When it has stayed after all of them, so many times as many."""
LONGEST: Final = 256
"""A stream that goes on where another ran out gets `GROWTH` times as many tokens, up to so many: a
query that used all of the first mostly uses more. What it leaves is cancelled."""
REMEMBERED: Final = 256

T = TypeVar("T")


class Recent(OrderedDict[Hashable, T], Generic[T]):
    """The latest `REMEMBERED` entries."""

    def __setitem__(self, key: Hashable, value: T) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > REMEMBERED:
            self.popitem(last=False)


_staying = Recent[bool]()
"""Whitelists that have stayed, in any query of this process."""


class Lengths:
    """Chooses `max_tokens` for the ops of one query."""

    def __init__(self) -> None:
        self._ends = Recent[int]()
        """Where streams have ended, and how long they were."""

    def fit(self, op: Generate, hint: int | None) -> Generate:
        """`op` as long as LMQL can use it. hint: how many tokens LMQL knows the variable may have,
        0 when it knows nothing, None when it did not say."""
        most = op.max_tokens
        if hint == 0 and most == CHUNK:
            most = WITHOUT_HINT
        if op.top_logprobs > 1:
            most = min(most, BEAM)
        if _has_whitelist(op):
            most = min(most, self._within_whitelist(op))
        elif is_one_way(op) and hint is not None and (hint != 0 or op.max_tokens == CHUNK):
            length = self._ends.get(_place(op.prompt, op.mask), 0)
            most = max(most, min(LONGEST, GROWTH * length))
        return replace(op, max_tokens=most)

    def _within_whitelist(self, op: Generate) -> int:
        assert op.mask is not None and op.mask.allowed is not None
        length = self._ends.get(_place(op.prompt, op.mask))
        if length is not None:
            _staying[hash(op.mask)] = True
            return GROWTH * length
        is_large = sum(byte.bit_count() for byte in op.mask.allowed) > FEW
        return GROWTH if is_large or hash(op.mask) in _staying else 1

    def note(self, op: Generate, tokens: Sequence[int]) -> None:
        """`op` was answered by `tokens`."""
        place = _place((*op.prompt, *tokens), op.mask)
        self._ends[place] = max(len(tokens), self._ends.get(place, 0))


def is_one_way(op: Generate) -> bool:
    """Whether LMQL follows its stream alone: at temperature 0 and without beams."""
    return op.sampling.temperature == 0 and op.top_logprobs <= 1


def _place(prompt: tuple[int, ...], mask: Mask | None) -> int:
    return hash((prompt, mask))


def _has_whitelist(op: Generate) -> bool:
    return op.mask is not None and op.mask.allowed is not None
