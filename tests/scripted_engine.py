"""A small, real engine without torch: the next token is a table look-up.

It keeps every promise of `lmtp_replicate.engine.interface` (one thread, one token per stream and
step, masks, endings, cancel, crash), so that serving, gateway, client and plug-in can be tested
without a model.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lmtp_replicate.engine.interface import ModelCard, Sink
from lmtp_replicate.protocol.messages import (
    Ending,
    ErrorItem,
    FinishReason,
    Generate,
    Score,
    StreamItem,
    TokenItem,
)

VOCABULARY = 64
EOS = 1
Logits = Callable[[Sequence[int]], Sequence[float]]


def counting(context: Sequence[int]) -> list[float]:
    """Likes the id after the last one best (never EOS by itself), the others less and less."""
    last = context[-1] if context else 1
    favourite = 2 + (last - 1) % (VOCABULARY - 2)
    return [-0.1 * ((token - favourite) % VOCABULARY) for token in range(VOCABULARY)]


def script(tokens: Mapping[tuple[int, ...], int] | Sequence[int]) -> Logits:
    """Logits that follow a fixed continuation, whatever the prompt: position by position."""
    fixed = list(tokens)

    def logits(context: Sequence[int]) -> list[float]:
        scores = [-5.0] * VOCABULARY
        scores[fixed[len(context) % len(fixed)]] = 5.0
        return scores

    return logits


def processed(logits: Sequence[float], op: Generate) -> dict[int, float]:
    """Natural log probabilities of the ids that `op`'s mask leaves."""
    mask = op.mask
    kept: dict[int, float] = {}
    bias = dict(mask.added) if mask else {}
    for token, value in enumerate(logits):
        if mask is not None:
            inside = mask.allowed is None or _has(mask.allowed, token)
            if not inside or _has(mask.forbidden, token):
                continue
        kept[token] = value + bias.get(token, 0.0)
    total = math.log(sum(math.exp(v) for v in kept.values())) if kept else 0.0
    return {token: value - total for token, value in kept.items()}


def _has(bits: bytes, token: int) -> bool:
    return token >> 3 < len(bits) and bool(bits[token >> 3] >> (token & 7) & 1)


@dataclass
class ScriptedTicket:
    op: Generate | Score
    sink: Sink
    produced: list[int] = field(default_factory=list)
    cancelled: bool = False
    ended: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class ScriptedEngine:
    """See the module. `gate` (set by default) lets tests hold the engine between steps; `steps`
    counts them; `crash(reason)` fails every open stream as a real crash would."""

    def __init__(
        self, logits: Logits = counting, *, context_length: int = 512, step_seconds: float = 0.0
    ) -> None:
        self._logits = logits
        self._card = ModelCard(
            model="scripted",
            vocab_size=VOCABULARY,
            context_length=context_length,
            eos_token_ids=(EOS,),
            bos_token_id=0,
            dtype="float32",
            path="scripted",
            device="none",
        )
        self._step_seconds = step_seconds
        self._pause = threading.Event()
        self._changed = threading.Condition()
        self._streams: list[ScriptedTicket] = []
        self._failure: str | None = None
        self._closed = False
        self.gate = threading.Event()
        self.gate.set()
        self.steps = 0
        self._thread = threading.Thread(target=self._loop, name="scripted-engine", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> str | None:
        return self._failure

    @property
    def open_streams(self) -> int:
        with self._changed:
            return len(self._streams)

    def info(self) -> ModelCard:
        return self._card

    def submit(self, op: Generate | Score, sink: Sink) -> ScriptedTicket:
        ticket = ScriptedTicket(op, sink)
        with self._changed:
            refused = self._failure
            if refused is None:
                self._streams.append(ticket)
                self._changed.notify_all()
        if refused is not None:
            sink([ErrorItem(op.stream_id, refused)])
        return ticket

    def crash(self, reason: str) -> None:
        with self._changed:
            self._failure = reason
            streams, self._streams = self._streams, []
            self._changed.notify_all()
        for ticket in streams:
            ticket.sink([ErrorItem(ticket.op.stream_id, reason)])

    def close(self) -> None:
        self._closed = True
        self.gate.set()
        self.crash("the engine was closed")
        self._thread.join(timeout=10)

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._streams or self._failure is not None)
                if self._failure is not None:
                    return
                streams = list(self._streams)
            self.gate.wait()
            if self._step_seconds:
                self._pause.wait(self._step_seconds)  # stands for the time of a forward
            self.steps += 1
            for ticket in streams:
                self._advance(ticket)
            with self._changed:
                self._streams = [t for t in self._streams if not t.ended]

    def _advance(self, ticket: ScriptedTicket) -> None:
        if self._failure is not None:
            return
        op = ticket.op
        items: list[StreamItem]
        if ticket.cancelled:
            items, ticket.ended = [Ending(op.stream_id, FinishReason.CANCELLED)], True
        elif isinstance(op, Score):
            items, ticket.ended = self._score(op), True
        else:
            item = self._next(op, ticket)
            items = [item]
            ticket.ended = isinstance(item, ErrorItem) or item.finish_reason is not None
        ticket.sink(items)

    def _score(self, op: Score) -> list[StreamItem]:
        if not op.scored:
            return [Ending(op.stream_id, FinishReason.STOP)]
        items: list[StreamItem] = []
        context = list(op.prompt)
        for index, token in enumerate(op.scored):
            probe = Generate(op.stream_id, tuple(context), 1)
            logprob = processed(self._logits(context), probe).get(token)
            if logprob is None:
                return [
                    ErrorItem(op.stream_id, f"scored[{index}]: {token} is not in the vocabulary")
                ]
            last = index == len(op.scored) - 1
            reason = FinishReason.STOP if last else None
            items.append(TokenItem(op.stream_id, token, logprob, {}, reason))
            context.append(token)
        return items

    def _next(self, op: Generate, ticket: ScriptedTicket) -> TokenItem | ErrorItem:
        context = [*op.prompt, *ticket.produced]
        if len(op.prompt) >= self._card.context_length:
            return ErrorItem(op.stream_id, "prompt: fills the context")
        distribution = processed(self._logits(context), op)
        if not distribution:
            return ErrorItem(op.stream_id, "logit_bias: no token is left")
        ranked = sorted(distribution.items(), key=lambda pair: (-pair[1], pair[0]))
        token, logprob = ranked[0]
        ticket.produced.append(token)
        reason = None
        if token == EOS:
            reason = FinishReason.STOP
        elif len(ticket.produced) == op.max_tokens:
            reason = FinishReason.LENGTH
        return TokenItem(op.stream_id, token, logprob, dict(ranked[: op.top_logprobs]), reason)
