"""What an endpoint's model has said, so that nobody asks for it again.

Scores only: log p(token | everything before it) is a fact about a model version, whoever asked for
it and with which op. What a mask, a bias or a penalty has changed is none, and a sample is a draw
of its own. A score that is recalled is exactly the one that came first; SCORE and GENERATE agree
up to rounding in float32 alone, so of other models only SCORE's are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import Any, Final

from lmtp_replicate.client.channel import Delivery
from lmtp_replicate.client.score_memo import Prefix, ScoreMemo
from lmtp_replicate.protocol.messages import FinishReason, Generate, Score, TokenItem

VERSION_STANDS: Final = 10.0
"""Seconds for which a deployment is taken to run the version that its last prediction named."""


class Memory:
    """One endpoint's, for the version it runs at present. `card` gives the answer to MODEL_INFO,
    once known. Hub's thread only."""

    def __init__(
        self,
        card: Callable[[], Mapping[str, Any] | None],
        *,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self._card = card
        self._now = now
        self._memo = ScoreMemo()
        self._version: str | None = None
        self._stands_until = 0.0

    def see_version(self, version: str | None, *, is_chosen: bool) -> bool:
        """A prediction was created, and its answer named `version`. is_chosen: we have asked for
        that one, so that no other can take its place. Returns whether it is a new version; nothing
        of the old one is recalled, nor kept if it is still to come."""
        is_new = self._version is not None and version != self._version
        if is_new:
            self._memo = ScoreMemo()
        self._version = version
        self._stands_until = float("inf") if is_chosen else self._now() + VERSION_STANDS
        return is_new

    def recall(self, op: Score) -> list[TokenItem] | None:
        """The items that answer `op`, or None when they are not all known."""
        if not op.scored or self._now() > self._stands_until:
            return None
        logprobs = self._memo.recall(op.prompt, op.scored)
        if logprobs is None:
            return None
        items = [
            TokenItem(op.stream_id, token, logprob)
            for token, logprob in zip(op.scored, logprobs, strict=True)
        ]
        items[-1] = TokenItem(
            op.stream_id, op.scored[-1], logprobs[-1], finish_reason=FinishReason.STOP
        )
        return items

    def listener(self, op: Generate | Score) -> Callable[[Iterable[Delivery]], None] | None:
        """What learns from the items that will answer `op`; None when there is nothing to learn.
        What it learns belongs to the version of now."""
        is_generate = isinstance(op, Generate)
        if isinstance(op, Generate) and (op.mask is not None or op.sampling.has_penalties):
            return None
        memo, prefix = self._memo, Prefix(op.prompt)

        def listen(items: Iterable[Delivery]) -> None:
            if is_generate and not self._is_exact():
                return
            for item in items:
                if isinstance(item, TokenItem):
                    memo.learn(prefix, {**item.top_logprobs, item.token: item.logprob})
                    prefix.add(item.token)

        return listen

    def _is_exact(self) -> bool:
        """Whether GENERATE and SCORE give the same numbers."""
        card = self._card() or {}
        return card.get("dtype") == "float32" and not card.get("quantization")
