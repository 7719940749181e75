"""Greedy paths: at temperature 0, without a mask or a penalty, the next token is a function of the
ones before it, wherever the prompt ended. So what one op was answered is known to every later one
that comes by."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, TypeGuard

from lmtp_replicate.client.score_memo import Prefix
from lmtp_replicate.protocol.messages import FinishReason, Generate, Op, TokenItem

MOST_ENTRIES: Final = 32768
"""Bound of one memo, steps and their likeliest ids together, about 10 MB; the steps used longest
ago go first."""


@dataclass(frozen=True, slots=True)
class _Step:
    """What came after a prefix, with its `asked` likeliest ids. may_be_full: the stream ended here
    by its length, and nobody has gone on: perhaps the context is full."""

    item: TokenItem
    asked: int
    may_be_full: bool

    @property
    def entries(self) -> int:
        return 1 + len(self.item.top_logprobs)


class PathMemo:
    """By prefix, the next item. Bounded; what was learnt first stays, until an answer with more of
    the likeliest ids takes its place."""

    def __init__(self, most: int = MOST_ENTRIES) -> None:
        self._most = most
        self._entries = 0
        self._steps: OrderedDict[bytes, _Step] = OrderedDict()

    def __len__(self) -> int:
        return len(self._steps)

    def learn(self, prefix: Prefix, item: TokenItem, asked: int) -> None:
        """After `prefix` comes `item`, by an op that asked for so many of the likeliest ids."""
        known = self._steps.get(prefix.key)
        may_be_full = item.finish_reason is FinishReason.LENGTH
        if known is None or asked > known.asked:
            is_end = item.finish_reason is FinishReason.STOP
            kept = replace(item, finish_reason=FinishReason.STOP if is_end else None)
            may_be_full &= known is None or known.may_be_full
            self._put(prefix.key, _Step(kept, asked, may_be_full))
        else:
            self._put(prefix.key, replace(known, may_be_full=known.may_be_full and may_be_full))

    def _put(self, key: bytes, step: _Step) -> None:
        old = self._steps.get(key)
        self._steps[key] = step
        self._steps.move_to_end(key)
        self._entries += step.entries - (old.entries if old is not None else 0)
        while self._entries > self._most:
            self._entries -= self._steps.popitem(last=False)[1].entries

    def recall(self, op: Generate, *, is_part_enough: bool = True) -> list[TokenItem]:
        """The first items that answer `op`, as many as are known; all of them where the last one
        has a finish reason. is_part_enough: what follows need not be asked for. Else the last one
        is left out where nothing may follow it: a prompt that fills the context is refused."""
        prefix, items, step = Prefix(op.prompt), list[TokenItem](), None
        while len(items) < op.max_tokens:
            following = self._steps.get(prefix.key)
            if following is None or following.asked < op.top_logprobs:
                break
            step = following
            self._steps.move_to_end(prefix.key)
            items.append(fitted(step.item, op, len(items) + 1))
            if items[-1].finish_reason is not None:
                return items
            prefix.add(step.item.token)
        if step is not None and step.may_be_full and not is_part_enough:
            items.pop()
        return items


def is_path(op: Op) -> TypeGuard[Generate]:
    """Whether `op` goes along a greedy path. A mask changes the log probabilities also where it
    leaves the token; and an empty prompt stands for a token that we do not know, so that what
    follows it cannot be asked for from the middle."""
    return (
        isinstance(op, Generate)
        and op.mask is None
        and bool(op.prompt)
        and op.sampling.temperature == 0
        and not op.sampling.has_penalties
    )


def is_cut(item: TokenItem, left: int) -> bool:
    """Whether `item` ends a stream that had tokens left, for want of room. Another op that comes
    this far must be told so by the server."""
    return item.finish_reason is FinishReason.LENGTH and left > 0


def fitted(item: TokenItem, op: Generate, number: int) -> TokenItem:
    """`item` of a path as the answer to `op` that has that number, counted from 1."""
    is_full = number == op.max_tokens
    reason = item.finish_reason
    if reason is not FinishReason.STOP:
        reason = FinishReason.LENGTH if is_full else None
    best = item.top_logprobs
    if len(best) > op.top_logprobs:
        best = dict(islice(best.items(), op.top_logprobs))
    return TokenItem(op.stream_id, item.token, item.logprob, best, reason)


def rest_of(op: Generate, known: Sequence[int]) -> Generate:
    """What is left to ask when the first tokens of the answer are known."""
    return replace(op, prompt=(*op.prompt, *known), max_tokens=op.max_tokens - len(known))
