"""What the sides are asked to do; the same for all of them, from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

FIRST_ID = 3
"""Prompts are of ordinary tokens only: 0 to 2 are padding, BOS and EOS."""


@dataclass(frozen=True, slots=True)
class Request:
    """Continue `prompt` greedily by exactly `max_tokens` tokens."""

    prompt: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Mask:
    """Token ids and the bias each of them gets: 100 (only these are allowed) or -100 (none is)."""

    ids: tuple[int, ...]
    is_whitelist: bool

    @property
    def bias(self) -> dict[int, float]:
        return dict.fromkeys(self.ids, 100.0 if self.is_whitelist else -100.0)


@dataclass(frozen=True, slots=True)
class Chain:
    """`ops` GENERATEs one after another, each continuing the one before by `max_tokens` tokens, as
    a query does. Op i has mask i modulo their number, if there are any."""

    prompt: tuple[int, ...]
    ops: int
    max_tokens: int
    masks: tuple[Mask, ...] = ()

    def mask(self, op: int) -> Mask | None:
        return self.masks[op % len(self.masks)] if self.masks else None


@dataclass(frozen=True, slots=True)
class FanOut:
    """Rounds of scoring all `options` after each prefix, sent at once. `generated` tokens are
    generated after the prefix first, outside the measured time, and belong to the prefix of the
    scores then: as in a query that asks for a distribution over what it has just written."""

    prefixes: tuple[tuple[int, ...], ...]
    options: tuple[tuple[int, ...], ...]
    generated: int = 0


class Source:
    """Random token ids below `vocabulary`. Equal seeds give equal tasks; a task is never repeated
    within a run, so that no side answers a later round from its cache."""

    def __init__(self, vocabulary: int, *seed: object) -> None:
        self._random = random.Random("/".join(map(str, seed)))
        self._ids = range(FIRST_ID, vocabulary)

    def tokens(self, count: int) -> tuple[int, ...]:
        """`count` ids, with repetition."""
        return tuple(self._random.choices(self._ids, k=count))

    def requests(
        self, count: int, lengths: tuple[int, int], max_tokens: int
    ) -> tuple[Request, ...]:
        """Prompts of lengths spread evenly from lengths[0] to lengths[1], in random order."""
        spread = [
            lengths[0] + (lengths[1] - lengths[0]) * index // max(1, count - 1)
            for index in range(count)
        ]
        self._random.shuffle(spread)
        return tuple(Request(self.tokens(length), max_tokens) for length in spread)

    def mask(self, count: int, *, is_whitelist: bool) -> Mask:
        """A mask of `count` different ids."""
        return Mask(tuple(sorted(self._random.sample(self._ids, count))), is_whitelist)

    def options(self, lengths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """One option per length."""
        return tuple(self.tokens(length) for length in lengths)
