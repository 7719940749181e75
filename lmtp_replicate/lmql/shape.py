"""How many tokens of a stream LMQL can use, and until when.

LMQL 0.7.3 files a whole stream under the mask of its first token. So of a stream under a whitelist
it uses the first token, and more only where the next whitelist is the same. Where the query does
not say how many tokens there may be it asks for 16, then for 16 more, and so on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from lmtp_replicate.protocol.messages import Generate

CHUNK: Final = 16
"""What LMQL asks for without a hint, unless it is told otherwise by `chunksize=`."""
WITHOUT_HINT: Final = 64
"""What it gets then."""
BEAM: Final = 16
"""Beams soon part from the likeliest path, and what follows on it then is not used."""
REMEMBERED: Final = 64
"""Answers under a whitelist; of more beams or samples than that some lose their thread."""


class Lengths:
    """Chooses `max_tokens` for the ops of one query."""

    def __init__(self) -> None:
        self._answered: deque[int] = deque(maxlen=REMEMBERED)

    def fit(self, op: Generate, hint: int | None) -> Generate:
        """`op` as long as LMQL can use it. hint: how many tokens LMQL knows the variable may have,
        0 when it knows nothing, None when it did not say."""
        if _has_whitelist(op):
            # The same whitelist again, right after its token: it may well stay.
            stays = hash((op.prompt, op.mask)) in self._answered
            return op if stays else replace(op, max_tokens=1)
        most = op.max_tokens
        if hint == 0 and most == CHUNK:
            most = WITHOUT_HINT
        if op.top_logprobs > 1:
            most = min(most, BEAM)
        return replace(op, max_tokens=most)

    def note(self, op: Generate, token: int) -> None:
        """The first token of `op`'s answer is `token`."""
        if _has_whitelist(op):
            self._answered.append(hash(((*op.prompt, token), op.mask)))


class Path:
    """The tokens of a greedy stream, beside those that LMQL has gone on with.

    With one sequence under way, as at temperature 0 without beams, a later op tells which way LMQL
    has gone. Should it go several ways after all, a stream that ends too soon is asked for again.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        self._produced = list(prompt)
        self._wanted: list[int] = []

    def add(self, token: int) -> bool:
        """The stream has produced `token`; whether it is still of use."""
        position = len(self._produced)
        self._produced.append(token)
        return position >= len(self._wanted) or self._wanted[position] == token

    def turn(self, prompt: Sequence[int]) -> bool:
        """LMQL asks what comes after `prompt`; whether the stream is still of use."""
        self._wanted = list(prompt)
        common = min(len(self._wanted), len(self._produced))
        return self._wanted[:common] == self._produced[:common]


def _has_whitelist(op: Generate) -> bool:
    return op.mask is not None and op.mask.allowed is not None
