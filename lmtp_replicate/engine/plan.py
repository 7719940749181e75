"""What one step runs: the scheduler's word to the model. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from lmtp_replicate.engine.pages import Clear, Copy
from lmtp_replicate.engine.stream import Stream


class Work(NamedTuple):
    """Run the tokens `start..start + length` of a stream."""

    stream: Stream
    start: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.length

    @property
    def rows(self) -> range:
        """The positions whose logits are wanted."""
        return self.stream.rows(self.start, self.stop)


@dataclass(slots=True)
class Plan:
    """One step: first the changes of memory, in order, then all works in one forward. The step's
    logits are the works' `rows`, in this order."""

    changes: list[Copy | Clear] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)
    decoding: int = 0
    """How many works, the first ones, are those of decoding streams."""

    @property
    def prompt_tokens(self) -> int:
        return sum(work.length for work in self.works[self.decoding :])
