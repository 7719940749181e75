"""The messages of LMTP as frozen values: what a client may ask, and what a server answers.

Ops (in): `Generate`, `Score`, `ModelInfo`, `Cancel`. Items (out): `TokenItem`, `Ending`,
`ErrorItem`, `Info`, `Usage`. The meaning of every field is in docs/protocol.md. Values here are
already validated (see `validation`); the codecs turn them into bytes and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from lmtp_replicate.protocol.masks import Mask

TokenId = int

EXTENSIONS = ("cancel", "lists", "mask", "msgpack", "usage")
"""What this implementation adds to LMQL 0.7.3's LMTP; announced in MODEL_INFO. See
docs/protocol.md, "Extensions"."""


class Dialect(StrEnum):
    """How much a peer understands; the values are the choices of Cog's input `encoding`."""

    UPSTREAM = "lmtp"
    """LMQL 0.7.3's own clients: nothing beyond its messages."""
    EXTENDED = "lmtp-extended"
    """All of `EXTENSIONS`."""


class FinishReason(StrEnum):
    """Why a stream ended. CANCELLED is sent only to peers that know CANCEL."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen. Neutral values mean "off", exactly as if absent.

    temperature: 0 is greedy. top_k: 0 is off. top_p: 1 is off. seed: None draws fresh entropy.
    repetition_penalty (multiplicative, 1 off), presence_penalty and frequency_penalty (additive,
    0 off) count over prompt and output.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    @property
    def has_penalties(self) -> bool:
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


@dataclass(frozen=True, slots=True)
class Generate:
    """Continue `prompt` (token ids; may be empty) by up to `max_tokens` tokens."""

    stream_id: int
    prompt: tuple[TokenId, ...]
    max_tokens: int
    sampling: Sampling = Sampling()
    mask: Mask | None = None
    top_logprobs: int = 1


@dataclass(frozen=True, slots=True)
class Score:
    """Log probability of each token of `scored` after `prompt` (and the tokens before it)."""

    stream_id: int
    prompt: tuple[TokenId, ...]
    scored: tuple[TokenId, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Ask for the model's card. `extensions` are those the *asking* side understands."""

    stream_id: int
    extensions: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Cancel:
    """End the stream as soon as possible; a stream that is unknown or has ended is no error."""

    stream_id: int


Op = Generate | Score | ModelInfo | Cancel


@dataclass(frozen=True, slots=True)
class TokenItem:
    """One token of a stream. `top_logprobs` maps token id to natural log probability, best first
    for GENERATE; empty for SCORE. `finish_reason` is set on the last item only."""

    stream_id: int
    token: TokenId
    logprob: float
    top_logprobs: Mapping[TokenId, float] = field(default_factory=dict)
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """A stream's end that no token can carry (an empty SCORE, a cancelled stream)."""

    stream_id: int
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class ErrorItem:
    """The stream failed. `stream_id` is None only where the message names no readable stream."""

    stream_id: int | None
    error: str


@dataclass(frozen=True, slots=True)
class Info:
    """Answer to MODEL_INFO; `model_info` is JSON-able."""

    stream_id: int
    model_info: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a prediction or connection has used so far; extended dialect only."""

    usage: Mapping[str, Any]


StreamItem = TokenItem | Ending | ErrorItem
Item = StreamItem | Info | Usage


def is_last(item: Item) -> bool:
    """Whether `item` ends its stream."""
    match item:
        case TokenItem(finish_reason=reason):
            return reason is not None
        case Ending() | ErrorItem() | Info():
            return True
        case Usage():
            return False
