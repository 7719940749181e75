"""The engine of the rote model: a step takes a fixed time, whatever it holds."""

from __future__ import annotations

import random
import secrets
from pathlib import Path

import numpy as np

from benchmarks.rote.model import RoteModel, Row, log_softmax, rote_model
from lmtp_replicate.engine.interface import ModelCard, Sink
from lmtp_replicate.protocol.masks import Mask
from lmtp_replicate.protocol.messages import (
    ErrorItem,
    FinishReason,
    Generate,
    Sampling,
    Score,
    StreamItem,
    TokenItem,
)
from lmtp_replicate.serving.cog_runner import CogRunner
from tests.scripted_engine import ScriptedEngine, ScriptedTicket

CONTEXT_LENGTH = 2048
JOURNAL = "streams.log"


class RoteEngine(ScriptedEngine):
    """As `ScriptedEngine`, with another model, drawing, and a `journal`: a line `begin` for each
    stream, and a line `end TOKENS` once it is over."""

    def __init__(self, model: RoteModel, *, step_seconds: float, journal: Path) -> None:
        self._model = model
        self._journal = journal.open("a", buffering=1)
        super().__init__(step_seconds=step_seconds, context_length=CONTEXT_LENGTH)

    def info(self) -> ModelCard:
        return ModelCard(
            model="rote",
            vocab_size=len(self._model.pieces),
            context_length=CONTEXT_LENGTH,
            eos_token_ids=(self._model.eos,),
            bos_token_id=self._model.bos,
            dtype="float32",
            path="scripted",
            device="none",
            tokenizer_fingerprint=self._model.fingerprint,
        )

    def submit(self, op: Generate | Score, sink: Sink) -> ScriptedTicket:
        self._journal.write("begin\n")
        return super().submit(op, sink)

    def _advance(self, ticket: ScriptedTicket) -> None:
        super()._advance(ticket)
        if ticket.ended:
            self._journal.write(f"end {len(ticket.produced)}\n")

    def _score(self, op: Score) -> list[StreamItem]:
        items: list[StreamItem] = []
        context = list(op.prompt)
        for index, token in enumerate(op.scored, 1):
            reason = FinishReason.STOP if index == len(op.scored) else None
            logprob = float(self._model.logprobs(context)[token])
            items.append(TokenItem(op.stream_id, token, logprob, {}, reason))
            context.append(token)
        return items

    def _next(self, op: Generate, ticket: ScriptedTicket) -> TokenItem | ErrorItem:
        context = [*op.prompt, *ticket.produced]
        row = masked(self._model.logits(context), op.mask)
        if not np.isfinite(row).any():
            return ErrorItem(op.stream_id, "logit_bias: no token is left")
        logprobs = log_softmax(row)
        seed = secrets.token_hex() if op.sampling.seed is None else op.sampling.seed
        token = choose(logprobs, op.sampling, f"{seed}:{len(context)}")
        ticket.produced.append(token)
        reason = None
        if token == self._model.eos:
            reason = FinishReason.STOP
        elif len(ticket.produced) == op.max_tokens:
            reason = FinishReason.LENGTH
        return TokenItem(
            op.stream_id, token, float(logprobs[token]), best(logprobs, op.top_logprobs), reason
        )


def masked(logits: Row, mask: Mask | None) -> Row:
    """`logits` with those that `mask` leaves out at -inf."""
    if mask is None:
        return logits
    kept = ~_bits(mask.forbidden, len(logits))
    if mask.allowed is not None:
        kept &= _bits(mask.allowed, len(logits))
    return np.where(kept, logits, -np.inf)


def _bits(bitset: bytes, width: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    bits = np.unpackbits(np.frombuffer(bitset, np.uint8), bitorder="little")[:width]
    return np.pad(bits, (0, width - len(bits))).astype(bool)


def choose(logprobs: Row, sampling: Sampling, entropy: str) -> int:
    """The best id, or a draw at the temperature that depends on `entropy` alone."""
    if not sampling.temperature:
        return int(logprobs.argmax())
    weights = np.exp(logprobs / sampling.temperature)
    target = random.Random(entropy).random() * weights.sum()
    return int(np.searchsorted(weights.cumsum(), target, side="right"))


def best(logprobs: Row, count: int) -> dict[int, float]:
    """The `count` likeliest possible ids, best first, equal ones by id."""
    order = np.argsort(-logprobs, kind="stable")[:count]
    return {int(token): float(logprobs[token]) for token in order if np.isfinite(logprobs[token])}


def runner(step_seconds: float) -> CogRunner:
    """For a work directory's run.py; the journal lies beside it."""
    return CogRunner(RoteEngine(rote_model(), step_seconds=step_seconds, journal=Path(JOURNAL)))
