"""Greedy streams in flight, by where they have got to, so that an op that goes on from there can
follow."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

from lmtp_replicate.client.score_memo import Prefix
from lmtp_replicate.protocol.messages import Generate

AHEAD: Final = 4
"""So many tokens of its prompt an op may be ahead of a stream: LMQL puts in the template's text and
asks for what follows, while the model is just writing the same. The stream is there, or elsewhere,
sooner than a prediction of the op's own would begin."""


@dataclass(frozen=True, slots=True)
class Lead:
    """The stream that leads, and how many tokens it has left; the last tokens of the op's prompt
    that it must come to first."""

    stream_id: int
    left: int
    ahead: tuple[int, ...]


class _Leader:
    def __init__(self, op: Generate, realm: Hashable) -> None:
        self.op = op
        self.realm = realm
        self.prefix = Prefix(op.prompt)
        self.produced = 0

    @property
    def place(self) -> Hashable:
        return self.realm, self.prefix.key

    def may_lead(self, op: Generate, ahead: int, least: int) -> bool:
        """Whether `op` is better off behind this one than alone: a stream that has begun is never
        slower than a new one, one that has not must lead far enough."""
        left = self.op.max_tokens - self.produced - ahead
        is_long_enough = left > 0 and (self.produced > 0 or left >= least)
        return is_long_enough and self.op.top_logprobs >= op.top_logprobs


class Leaders:
    """`realm`: streams of different ones have nothing in common. Hub's thread only."""

    def __init__(self) -> None:
        self._leaders: dict[int, _Leader] = {}
        self._at: dict[Hashable, _Leader] = {}

    def __len__(self) -> int:
        return len(self._at) + len(self._leaders)

    def add(self, op: Generate, realm: Hashable) -> None:
        """The stream of `op` is in flight."""
        leader = self._leaders[op.stream_id] = _Leader(op, realm)
        self._at[leader.place] = leader

    def move(self, stream_id: int, tokens: Sequence[int]) -> None:
        """The stream has gone on by `tokens`."""
        leader = self._leaders.get(stream_id)
        if leader is not None and tokens:
            self._leave_place(leader)
            for token in tokens[: leader.op.max_tokens - leader.produced]:
                leader.prefix.add(token)
            leader.produced += len(tokens)
            self._at[leader.place] = leader

    def remove(self, stream_id: int) -> None:
        """The stream is over, or was given up."""
        leader = self._leaders.pop(stream_id, None)
        if leader is not None:
            self._leave_place(leader)

    def find(self, op: Generate, realm: Hashable, least: int) -> Lead | None:
        """The stream that `op` can follow, if there is one; for `least` tokens, if it has not even
        begun."""
        first = max(1, len(op.prompt) - AHEAD)
        prefix, keys = Prefix(op.prompt[:first]), list[bytes]()
        for token in op.prompt[first:]:
            keys.append(prefix.key)
            prefix.add(token)
        keys.append(prefix.key)
        for ahead, key in enumerate(reversed(keys)):
            leader = self._at.get((realm, key))
            if leader is not None and leader.may_lead(op, ahead, least):
                left = leader.op.max_tokens - leader.produced
                return Lead(leader.op.stream_id, left, op.prompt[len(op.prompt) - ahead :])
        return None

    def _leave_place(self, leader: _Leader) -> None:
        if self._at.get(leader.place) is leader:
            del self._at[leader.place]
