"""From an op to a stream, or to the item that answers it at once. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmtp_replicate.engine.interface import ModelCard
from lmtp_replicate.engine.stream import Stream
from lmtp_replicate.errors import StreamError
from lmtp_replicate.protocol.messages import (
    Ending,
    ErrorItem,
    FinishReason,
    Generate,
    Score,
    StreamItem,
)


@dataclass(frozen=True, slots=True)
class Admission:
    """Checks ops against the model's facts. `pool_tokens`: what the KV memory holds."""

    card: ModelCard
    pool_tokens: int

    def admit(self, op: Generate | Score) -> Stream | StreamItem:
        """The op's stream, or the only item it will ever get."""
        try:
            self._check_ids("prompt", op.prompt)
            context = op.prompt or self._start()
            if isinstance(op, Score):
                self._check_ids("scored", op.scored)
                if not op.scored:
                    return Ending(op.stream_id, FinishReason.STOP)
                self._check_score_fits(len(context) + len(op.scored))
            else:
                self._check_generation(op, len(context))
        except StreamError as error:
            return ErrorItem(op.stream_id, str(error))
        return Stream(op, context, limit=min(self.card.context_length, self.pool_tokens))

    def _start(self) -> tuple[int]:
        """What an empty prompt stands for."""
        if self.card.bos_token_id is not None:
            return (self.card.bos_token_id,)
        if self.card.eos_token_ids:
            return (self.card.eos_token_ids[0],)
        raise StreamError(
            "prompt: it is empty, and the model has neither a BOS nor an EOS token to start from"
        )

    def _check_ids(self, name: str, ids: Sequence[int]) -> None:
        for index, token in enumerate(ids):
            if not 0 <= token < self.card.vocab_size:
                raise StreamError(
                    f"{name}[{index}]: {token} is not in the vocabulary "
                    f"(0 to {self.card.vocab_size - 1})"
                )

    def _check_generation(self, op: Generate, length: int) -> None:
        if op.max_tokens < 1:
            raise StreamError(f"max_tokens: must be at least 1, not {op.max_tokens}")
        if length >= self.card.context_length:
            raise StreamError(
                f"prompt: its {length} tokens fill the model's context of "
                f"{self.card.context_length} tokens, so that no token can follow"
            )
        if length >= self.pool_tokens:
            raise self._too_large("prompt", length)

    def _check_score_fits(self, length: int) -> None:
        if length > self.card.context_length:
            raise StreamError(
                f"scored: prompt and scored tokens are {length} together, more than the model's "
                f"context of {self.card.context_length} tokens"
            )
        if length > self.pool_tokens:
            raise self._too_large("scored", length)

    def _too_large(self, name: str, length: int) -> StreamError:
        return StreamError(
            f"{name}: {length} tokens do not fit into the memory for keys and values "
            f"({self.pool_tokens} tokens); start the server with more (kv_cache_bytes)"
        )
