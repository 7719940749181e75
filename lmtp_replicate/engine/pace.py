"""How many prompt tokens fit into a step without making decoding streams wait. No torch here.

A step of d decoding streams takes about `D(d)` seconds, and each prompt token in it adds about
`c`. Both are measured all the time (exponentially weighted means); the budget is then the n for
which D(d) + c·n = `SLOWDOWN`·D(d), since no fixed number of tokens is right for one stream and
for thirty, for a laptop and for a GPU.
"""

from __future__ import annotations

SLOWDOWN = 2.0
LEAST = 16
_WEIGHT = 0.25


def _blend(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)


class Pace:
    """Measured step times. `chunk_tokens` is the budget of a step in which nothing decodes."""

    def __init__(self, chunk_tokens: int) -> None:
        self._chunk_tokens = chunk_tokens
        self._decode_seconds: dict[int, float] = {}
        self._token_seconds: float | None = None

    def budget(self, decoding: int) -> int:
        """Most prompt tokens for a step with `decoding` decoding streams."""
        if not decoding:
            return self._chunk_tokens
        alone = self._decode_time(decoding)
        if alone is None or self._token_seconds is None:
            return min(LEAST, self._chunk_tokens)
        fitting = int((SLOWDOWN - 1) * alone / max(self._token_seconds, 1e-9))
        return min(max(LEAST, fitting), self._chunk_tokens)

    def observe(self, decoding: int, prompt_tokens: int, seconds: float) -> None:
        """A step of so many decoding streams and prompt tokens took so long."""
        if not prompt_tokens:
            size = decoding.bit_length()
            self._decode_seconds[size] = _blend(self._decode_seconds.get(size), seconds)
            return
        alone = (self._decode_time(decoding) or 0.0) if decoding else 0.0
        # Small chunks without decoding streams measure a step's fixed cost rather than the
        # tokens', so they only count while nothing better is known.
        if decoding or prompt_tokens >= LEAST or self._token_seconds is None:
            each = max(seconds - alone, 0.0) / prompt_tokens
            self._token_seconds = _blend(self._token_seconds, each)

    def _decode_time(self, decoding: int) -> float | None:
        """The time of the nearest measured size (sizes are powers of two) not above this one,
        else of the smallest above it."""
        size = decoding.bit_length()
        below = [known for known in self._decode_seconds if known <= size]
        if below:
            return self._decode_seconds[max(below)]
        return self._decode_seconds[min(self._decode_seconds)] if self._decode_seconds else None
