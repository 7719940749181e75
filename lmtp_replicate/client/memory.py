"""What an endpoint's model has said, so that nobody asks for it again.

log p(token | everything before it) is a fact about a model version, whoever asked for it and with
which op, and so is the greedy path from a prefix on. What a mask, a bias or a penalty has changed
is none, and a sample is a draw of its own.

What is recalled is exactly what came first. SCORE and GENERATE agree up to rounding in float32
alone, so of other models only SCORE's scores are kept. Paths are kept of every model: they answer
only ops of the kind that they came from, and what such an op would be told anew differs from them
by no more than from itself, asked twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import Any, Final

from lmtp_replicate.client.channel import Delivery
from lmtp_replicate.client.path_memo import PathMemo, is_cut, is_path
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
        self._scores = ScoreMemo()
        self._paths = PathMemo()
        self._version: str | None = None
        self._stands_until = 0.0

    def see_version(self, version: str | None, *, is_chosen: bool) -> bool:
        """A prediction was created, and its answer named `version`. is_chosen: we have asked for
        that one, so that no other can take its place. Returns whether it is a new version; nothing
        of the old one is recalled, nor kept if it is still to come."""
        is_new = self._version is not None and version != self._version
        if is_new:
            self._scores, self._paths = ScoreMemo(), PathMemo()
        self._version = version
        self._stands_until = float("inf") if is_chosen else self._now() + VERSION_STANDS
        return is_new

    @property
    def epoch(self) -> object:
        """Another one for each version."""
        return self._paths

    def recall_path(self, op: Generate, *, is_part_enough: bool) -> list[TokenItem]:
        """See `PathMemo.recall`."""
        if not is_path(op) or self._now() > self._stands_until:
            return []
        return self._paths.recall(op, is_part_enough=is_part_enough)

    def recall(self, op: Score) -> list[TokenItem] | None:
        """The items that answer `op`, or None when they are not all known."""
        if not op.scored or self._now() > self._stands_until:
            return None
        logprobs = self._scores.recall(op.prompt, op.scored)
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
        if isinstance(op, Generate) and (op.mask is not None or op.sampling.has_penalties):
            return None
        scores, paths, prefix = self._scores, self._paths, Prefix(op.prompt)
        left = op.max_tokens if isinstance(op, Generate) else 0

        def listen(items: Iterable[Delivery]) -> None:
            nonlocal left
            for item in items:
                if not isinstance(item, TokenItem):
                    continue
                left -= 1
                if isinstance(op, Generate) and left < 0:
                    return  # LMQL's own server says the last token twice
                if isinstance(op, Score) or self._is_exact():
                    scores.learn(prefix, {**item.top_logprobs, item.token: item.logprob})
                if is_path(op) and not is_cut(item, left):
                    paths.learn(prefix, item, op.top_logprobs)
                prefix.add(item.token)

        return listen

    def _is_exact(self) -> bool:
        """Whether GENERATE and SCORE give the same numbers."""
        card = self._card() or {}
        return card.get("dtype") == "float32" and not card.get("quantization")
