"""One stream: an op, the tokens it stands on, and how far it has come. No torch here.

Ledger of `tokens` (indices are absolute positions)::

    GENERATE   [ context ................ | produced ........ ]   one row of logits, the last
    SCORE      [ context .... | scored .......................]   a row before each scored token
    both       [ cached: keys and values exist | missing .... ]

`context` is the prompt, or the one start token that stands for an empty prompt.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from lmtp_replicate.engine.pages import Place
from lmtp_replicate.protocol.messages import Generate, Score

_arrivals = count()


@dataclass(slots=True, eq=False)
class Stream:
    """An accepted op. `limit` is the most tokens it may stand on (context length or pool)."""

    op: Generate | Score
    context: tuple[int, ...]
    limit: int
    tokens: list[int] = field(init=False)
    arrival: int = field(default_factory=lambda: next(_arrivals))
    round: int = 0
    """Equal for those that arrived between the same two steps, larger for later ones."""
    entropy: int = field(init=False)
    cached: int = 0
    """How many of `tokens`, from the first on, have keys and values in `place`."""
    place: Place | None = None
    leader: Stream | None = None
    """The older stream that is running what this one needs next, and is to be copied from."""
    is_short: bool | None = None
    """Whether what is missing is run within a few steps; decided when its first chunk is."""
    answered: int = 0
    """How many items were delivered."""

    def __post_init__(self) -> None:
        scored = self.op.scored if isinstance(self.op, Score) else ()
        self.tokens = [*self.context, *scored]
        seed = self.op.sampling.seed if isinstance(self.op, Generate) else None
        self.entropy = secrets.randbits(63) if seed is None else seed

    def __repr__(self) -> str:
        kind = type(self.op).__name__
        return f"<{kind} {self.op.stream_id}: {self.cached}/{self.to_run} run, {self.answered} out>"

    @property
    def to_run(self) -> int:
        """How many tokens must have been run for all logits that are wanted now: for SCORE the
        last token is only looked up, never run."""
        return len(self.tokens) - (1 if isinstance(self.op, Score) else 0)

    @property
    def missing(self) -> int:
        return self.to_run - self.cached

    @property
    def is_decoding(self) -> bool:
        """Whether the next step runs just the newest token of a generation."""
        return isinstance(self.op, Generate) and self.answered > 0 and self.missing == 1

    @property
    def first_row(self) -> int:
        """The first position whose logits have not been used yet."""
        if isinstance(self.op, Score):
            return len(self.context) - 1 + self.answered
        return len(self.tokens) - 1

    def rows(self, start: int, stop: int) -> range:
        """The positions of `start..stop` whose logits are wanted."""
        return range(max(start, self.first_row), stop)

    @property
    def history(self) -> Sequence[int]:
        """Prompt and output, for penalties; a start token the client did not send is not in it."""
        return self.tokens if self.op.prompt else self.tokens[len(self.context) :]

    def pause(self) -> None:
        """Forget all keys and values (the pages are the scheduler's business): run again later."""
        self.cached = 0
        self.place = None
        self.leader = None
        self.is_short = None
