"""Which token has which log probability after which prefix, as far as the model has told."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Final

MOST_SCORES: Final = 65536
"""Bound of one memo, about 15 MB; the scores used longest ago go first."""


class Prefix:
    """A sequence of token ids that grows, known by a hash: adding a token costs the same after
    four thousand others as after none, and two prefixes are equal when their tokens are, wherever
    the prompt ended."""

    def __init__(self, prompt: Sequence[int]) -> None:
        # What follows an empty prompt follows a BOS that we need not know, so it is never what
        # follows the same tokens as a prompt.
        self._state = blake2b(_raw(prompt), digest_size=16, person=b"" if prompt else b"empty")

    def add(self, token: int) -> None:
        """Grow by `token`."""
        self._state.update(_raw((token,)))

    @property
    def key(self) -> bytes:
        """A key for the prefix."""
        return self._state.digest()

    def then(self, token: int) -> bytes:
        """A key for `token` coming next."""
        return self.key + _raw((token,))


class ScoreMemo:
    """Bounded; what has been learnt first stays, so that the same question always has the same
    answer as long as it is known."""

    def __init__(self, most: int = MOST_SCORES) -> None:
        self._most = most
        self._scores: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._scores)

    def learn(self, prefix: Prefix, logprobs: Mapping[int, float]) -> None:
        """After `prefix`, each token of `logprobs` has that natural log probability."""
        for token, logprob in logprobs.items():
            key = prefix.then(token)
            self._scores.setdefault(key, logprob)
            self._scores.move_to_end(key)
        while len(self._scores) > self._most:
            self._scores.popitem(last=False)

    def recall(self, prompt: Sequence[int], scored: Sequence[int]) -> list[float] | None:
        """The log probability of each token of `scored` after `prompt` and those before it; None
        unless all are known."""
        prefix, keys = Prefix(prompt), []
        for token in scored:
            key = prefix.then(token)
            if key not in self._scores:
                return None
            keys.append(key)
            prefix.add(token)
        for key in keys:
            self._scores.move_to_end(key)
        return [self._scores[key] for key in keys]


def _raw(tokens: Sequence[int]) -> bytes:
    return array("I", tokens).tobytes()
