"""How many prompt tokens fit into a step without making decoding streams wait. No torch here.

A step of d decoding streams takes about `D(d)` seconds, and each prompt token beside them adds
about `c`. Both are measured all the time (exponentially weighted means); the room for a long prompt
is the n for which D(d) + c·n = `SLOWDOWN`·D(d), since no fixed number of tokens is right for one
stream and for thirty, for a laptop and for a GPU. `c` includes a step's fixed costs at the n of
late, so the room moves to its fixed point within a few steps. Where several prompts wait, each may
add as much, all of them together up to `SHORT_SECONDS`: else the last of a burst would wait for
twice what all of them take, while nearly nobody decodes.

There is always room for `LEAST` tokens. Where decode steps are replayed from recordings, in a
fraction of the time, a step with a prompt costs its launches, several decode steps' time, however
few tokens it has: D(d) + c·n would never be small enough, and a long prompt run by 16 tokens would
pay those launches hundreds of times. There `LEAST_BESIDE_RECORDED` tokens cost hardly more than
one.

A short prompt, one of at most `SHORT_TOKENS` that is over after `SHORT_STEPS` steps, may add up to
`SHORT_SECONDS` to each of them, reckoned by what a token takes in large chunks: others wait for it
a second at most. While a prompt is run the steps go by with fewer streams than there could
be, and each costs nearly as much. With short prompts arriving all the time, as LMQL's ops do, a
tenth of a second is enough where a token takes half a millisecond; where it takes more than one,
prompts come in more slowly than streams end, and a third of the throughput at 32 streams is lost.
Where many arrive at once larger steps serve all of them sooner: with 2048 tokens instead of 512 at
most, 32 streams in bfloat16 got a fifth more throughput and waited two thirds as long for the first
token.
"""

from __future__ import annotations

from typing import NamedTuple

SLOWDOWN = 2.0
LEAST = 16
LEAST_BESIDE_RECORDED = 512
SHORT_SECONDS = 0.5
SHORT_STEPS = 2
SHORT_TOKENS = 1024
ALONE = 512
"""With nothing decoding a step has room for so many tokens, or what fits into `SHORT_SECONDS` if
that is more: whoever arrives meanwhile waits for its end."""
_MANY = 128
"""Prompt tokens beside which decoding streams count little."""
_WEIGHT = 0.25


class Room(NamedTuple):
    """Most prompt tokens of a step: of all its prompts while they are short, and of the prompts up
    to and with a long one."""

    short: int
    long: int

    def is_short(self, tokens: int) -> bool:
        """Whether a prompt of so many tokens is soon over."""
        return tokens <= min(SHORT_STEPS * self.short, SHORT_TOKENS)


class Pace:
    """Measured step times. `chunk_tokens`: the most room that any step has; `least`: the least,
    unless that is more."""

    def __init__(self, chunk_tokens: int, least: int = LEAST) -> None:
        self._chunk_tokens = chunk_tokens
        self._least = least
        self._decode_seconds: dict[int, float] = {}  # by bit length of the number of streams
        self._token_seconds: float | None = None
        self._large_seconds: float | None = None  # of chunks that tell what a token takes,
        self._large_tokens: float | None = None  # and how many each had

    def room(self, decoding: int, prompts: int) -> Room:
        """That of a step with so many decoding streams and so many that have prompts to run."""
        if not decoding:
            alone = max(ALONE, self._fitting(SHORT_SECONDS, self._in_large_chunks()))
            alone = min(alone, self._chunk_tokens)
            return Room(alone, alone)
        spare = (SLOWDOWN - 1) * self._decode_time(decoding)
        # Not by `c` where there are many: a long prompt makes it high, whose later tokens look back
        # at more, and few tokens beside many streams make it anything.
        each = self._in_large_chunks()
        long = self._fitting(spare, each if self._token_seconds is None else self._token_seconds)
        if prompts > 1:
            # Nothing but steps with prompts would follow, of the least room, if nothing is known.
            burst = min(prompts * spare, SHORT_SECONDS) if self._decode_seconds else SHORT_SECONDS
            long = max(long, self._fitting(burst, each))
        return Room(max(long, self._fitting(SHORT_SECONDS, each)), long)

    def _in_large_chunks(self) -> float | None:
        """What a token takes there."""
        if self._large_seconds is None or self._large_tokens is None:
            return self._token_seconds
        return self._large_seconds / self._large_tokens

    def _fitting(self, seconds: float, token_seconds: float | None) -> int:
        fitting = 0 if token_seconds is None else int(seconds / max(token_seconds, 1e-9))
        return min(max(self._least, fitting), self._chunk_tokens)

    def observe(self, decoding: int, prompt_tokens: int, seconds: float) -> None:
        """A step of so many decoding streams and prompt tokens took so long."""
        size = decoding.bit_length()
        added = max(0.0, seconds - self._decode_time(decoding)) if decoding else seconds
        if decoding and not prompt_tokens:
            self._decode_seconds[size] = _blend(self._decode_seconds.get(size), seconds)
        if decoding and prompt_tokens and size in self._decode_seconds:
            # Else all that more streams take would be put down to the tokens.
            self._token_seconds = _blend(self._token_seconds, added / prompt_tokens)
        if prompt_tokens and self._is_large(decoding, prompt_tokens):
            self._large_seconds = _blend(self._large_seconds, added)
            self._large_tokens = _blend(self._large_tokens, prompt_tokens)

    def _is_large(self, decoding: int, prompt_tokens: int) -> bool:
        """Whether so many tell what a token takes in large chunks. If tokens are held to be dear
        those do for which there is room: else one slow step would count for ever."""
        known = self._in_large_chunks()
        if known is None and not decoding:
            return True
        room = _MANY if known is None else self._fitting(SHORT_SECONDS, known)
        return prompt_tokens >= min(_MANY, room)

    def _decode_time(self, decoding: int) -> float:
        """The time of the nearest measured size not above this one, else above; 0 if there is
        none, which makes tokens seem dear and the budget small."""
        size = decoding.bit_length()
        below = [known for known in self._decode_seconds if known <= size]
        nearest = max(below) if below else min(self._decode_seconds, default=size)
        return self._decode_seconds.get(nearest, 0.0)


def _blend(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
