"""What is right: plain transformers, one stream at a time, no cache, eager attention, float32.

Nothing here uses the engine's own masks, penalties or sampling. A causal model's logits at a
position do not depend on later tokens, so one uncached forward over prompt and output gives what
running it token by token would give.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from lmtp_replicate.engine.loading import LoadedModel
from lmtp_replicate.protocol.masks import Mask, members
from lmtp_replicate.protocol.messages import (
    Ending,
    FinishReason,
    Generate,
    Score,
    StreamItem,
    TokenItem,
)

TOLERANCE = 1e-4
"""Largest difference of log probabilities that float32 rounding explains on these models."""


@dataclass
class Oracle:
    """Checks finished streams. `limit`: most tokens a stream may stand on. `choices` and `ties`
    count greedy choices, and those where the two best were closer than TOLERANCE, so that either
    token is right and the oracle follows the engine's."""

    network: Any
    loaded: LoadedModel
    limit: int
    choices: int = 0
    ties: int = field(default=0)

    def check(
        self, op: Generate | Score, items: list[StreamItem], *, cancelled: bool = False
    ) -> None:
        """Assert that `items` answer `op`; if `cancelled`, perhaps not to the end."""
        if cancelled and items[-1] == Ending(op.stream_id, FinishReason.CANCELLED):
            items = items[:-1]
        else:
            cancelled = False
        tokens = [item for item in items if isinstance(item, TokenItem)]
        assert tokens == items, f"{op}: {items[-1]}"
        if isinstance(op, Score):
            self._check_score(op, tokens, cancelled=cancelled)
        else:
            self._check_generation(op, tokens, cancelled=cancelled)

    def assert_few_ties(self) -> None:
        assert self.ties <= 0.01 * self.choices, f"{self.ties} near ties in {self.choices}"

    def logits(self, tokens: list[int]) -> list[list[float]]:
        """The model's logits after each of `tokens`, without the padded rows of the vocabulary."""
        with torch.no_grad():
            logits = self.network(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        assert logits.dtype == torch.float32
        rows: list[list[float]] = logits[:, : self.loaded.vocab_size].tolist()
        return rows

    def _context(self, op: Generate | Score) -> list[int]:
        start = self.loaded.bos_token_id
        if start is None:
            start = self.loaded.eos_token_ids[0]
        return list(op.prompt) or [start]

    def _check_score(self, op: Score, items: list[TokenItem], *, cancelled: bool) -> None:
        if not cancelled:
            assert len(items) == len(op.scored)
        context = self._context(op)
        rows = self.logits([*context, *op.scored])
        for index, item in enumerate(items):
            expected = log_softmax(dict(enumerate(rows[len(context) - 1 + index])))
            assert item.token == op.scored[index]
            assert item.top_logprobs == {}
            assert abs(item.logprob - expected[item.token]) < TOLERANCE
            is_last = index == len(op.scored) - 1
            assert item.finish_reason == (FinishReason.STOP if is_last else None)

    def _check_generation(self, op: Generate, items: list[TokenItem], *, cancelled: bool) -> None:
        context = self._context(op)
        produced = [item.token for item in items]
        rows = self.logits([*context, *produced])
        for index, item in enumerate(items):
            history = [*op.prompt, *produced[:index]]
            row = dict(enumerate(rows[len(context) - 1 + index]))
            expected = log_softmax(masked(penalised(row, op, history), op.mask))
            self._check_choice(op, item, expected)
            reason = None
            if item.token in self.loaded.eos_token_ids:
                reason = FinishReason.STOP
            elif index + 1 == op.max_tokens or len(context) + index + 1 == self.limit:
                reason = FinishReason.LENGTH
            assert item.finish_reason == reason, (op, index, item)
        assert cancelled or items[-1].finish_reason is not None

    def _check_choice(self, op: Generate, item: TokenItem, expected: dict[int, float]) -> None:
        assert abs(item.logprob - expected[item.token]) < TOLERANCE
        ranked = sorted(expected.items(), key=lambda pair: (-pair[1], pair[0]))
        if op.sampling.temperature == 0:
            self.choices += 1
            if len(ranked) > 1 and ranked[0][1] - ranked[1][1] < TOLERANCE:
                self.ties += 1
            else:
                assert item.token == ranked[0][0]
        else:
            assert item.token in nucleus(ranked, op)
        assert len(item.top_logprobs) == min(op.top_logprobs, len(ranked))
        pairs = zip(item.top_logprobs.items(), ranked, strict=False)
        for (token, logprob), (_, best) in pairs:
            assert abs(logprob - expected[token]) < TOLERANCE
            assert abs(logprob - best) < TOLERANCE  # the right rank, up to near ties


def penalised(row: dict[int, float], op: Generate, history: list[int]) -> dict[int, float]:
    sampling = op.sampling
    changed = dict(row)
    for token in set(history):
        value = changed[token]
        factor = sampling.repetition_penalty
        value = value / factor if value > 0 else value * factor
        value -= sampling.presence_penalty + sampling.frequency_penalty * history.count(token)
        changed[token] = value
    return changed


def masked(row: dict[int, float], mask: Mask | None) -> dict[int, float]:
    if mask is None:
        return row
    bias = dict(mask.added)
    allowed = set(row) if mask.allowed is None else set(members(mask.allowed))
    possible = allowed - set(members(mask.forbidden))
    return {
        token: value + bias.get(token, 0.0) for token, value in row.items() if token in possible
    }


def log_softmax(row: dict[int, float]) -> dict[int, float]:
    highest = max(row.values())
    total = math.log(math.fsum(math.exp(value - highest) for value in row.values())) + highest
    return {token: value - total for token, value in row.items()}


def nucleus(ranked: list[tuple[int, float]], op: Generate) -> set[int]:
    """The ids that top_k and then top_p on softmax(logits / T) leave, near ties included."""
    sampling = op.sampling
    kept = ranked
    if sampling.top_k:
        least = ranked[min(sampling.top_k, len(ranked)) - 1][1]
        kept = [pair for pair in ranked if pair[1] >= least - TOLERANCE]
    scaled = log_softmax({token: value / sampling.temperature for token, value in kept})
    before, ids = 0.0, set()
    for token, value in scaled.items():
        if before > sampling.top_p + TOLERANCE:
            break
        ids.add(token)
        before += math.exp(value)
    return ids
