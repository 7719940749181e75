"""How many prompt tokens fit into a step without making decoding streams wait. No torch here.

A step of d decoding streams takes about `D(d)` seconds, and each prompt token beside them adds
about `c`. Both are measured all the time (exponentially weighted means); the budget is the n for
which D(d) + c·n = `SLOWDOWN`·D(d), since no fixed number of tokens is right for one stream and
for thirty, for a laptop and for a GPU. `c` includes a step's fixed costs at the n of late, so the
budget moves to its fixed point within a few steps.
"""

from __future__ import annotations

SLOWDOWN = 2.0
LEAST = 16
_WEIGHT = 0.25


class Pace:
    """Measured step times. `chunk_tokens` is the budget of a step in which nothing decodes."""

    def __init__(self, chunk_tokens: int) -> None:
        self._chunk_tokens = chunk_tokens
        self._decode_seconds: dict[int, float] = {}  # by bit length of the number of streams
        self._token_seconds: float | None = None

    def budget(self, decoding: int) -> int:
        """Most prompt tokens for a step with `decoding` decoding streams."""
        if not decoding:
            return self._chunk_tokens
        fitting = 0
        if self._token_seconds is not None:
            spare = (SLOWDOWN - 1) * self._decode_time(decoding)
            fitting = int(spare / max(self._token_seconds, 1e-9))
        return min(max(LEAST, fitting), self._chunk_tokens)

    def observe(self, decoding: int, prompt_tokens: int, seconds: float) -> None:
        """A step of so many decoding streams and prompt tokens took so long."""
        if decoding and prompt_tokens:
            added = max(0.0, seconds - self._decode_time(decoding))
            self._token_seconds = _blend(self._token_seconds, added / prompt_tokens)
        elif decoding:
            size = decoding.bit_length()
            self._decode_seconds[size] = _blend(self._decode_seconds.get(size), seconds)

    def _decode_time(self, decoding: int) -> float:
        """The time of the nearest measured size not above this one, else above; 0 if there is
        none, which makes tokens seem dear and the budget small."""
        size = decoding.bit_length()
        below = [known for known in self._decode_seconds if known <= size]
        nearest = max(below) if below else min(self._decode_seconds, default=size)
        return self._decode_seconds.get(nearest, 0.0)


def _blend(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
