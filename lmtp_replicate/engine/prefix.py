"""What is remembered of finished streams, so that a new one need not run a known prefix again.

The index holds pages (one reference each) until memory is needed. Results are the same with any
implementation; `NullPrefixIndex` remembers nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from lmtp_replicate.engine.pages import Span


class Hit(NamedTuple):
    """The first `tokens` tokens of a sequence are known; their keys and values begin `span`."""

    span: Span
    tokens: int


class PrefixIndex(Protocol):
    """Token ids → pages. No method changes the pool's contents, only its reference counts."""

    def match(self, tokens: Sequence[int]) -> Hit | None:
        """The longest known prefix of `tokens`. Takes no reference: use the hit before any other
        call, since `evict` may give its pages away."""

    def keep(self, tokens: Sequence[int], span: Span) -> None:
        """Remember that `span` begins with the keys and values of `tokens`, all of which have been
        run, and hold the pages worth keeping once more."""

    def evict(self) -> bool:
        """Forget the least recently used entry. False when there is nothing to forget."""


class NullPrefixIndex:
    """Remembers nothing."""

    def match(self, tokens: Sequence[int]) -> Hit | None:  # noqa: ARG002
        return None

    def keep(self, tokens: Sequence[int], span: Span) -> None:
        pass

    def evict(self) -> bool:
        return False
