"""From logits to tokens and log probabilities: all rows of a step in one pass.

Processed logits are logits, then penalties, then additive bias, then mask. Reported log
probabilities are log softmax of those at temperature 1; temperature, top-k and top-p choose the
token only. Ids at or beyond the vocabulary (padded rows of the head) never exist here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from lmtp_replicate.engine.compiled_choice import BestAndNormaliser, best_and_normaliser
from lmtp_replicate.engine.device_masks import DeviceMasks
from lmtp_replicate.engine.drawing import draw, uniform
from lmtp_replicate.engine.penalties import penalised
from lmtp_replicate.engine.ranking import best_first
from lmtp_replicate.engine.transfer import to_device
from lmtp_replicate.protocol.masks import Mask
from lmtp_replicate.protocol.messages import Sampling

_LOWEST = torch.finfo(torch.float32).min


@dataclass(slots=True)
class Draw:
    """One row of logits from which a token is to be chosen.

    history: prompt and output so far, for the penalties. position: absolute position of the token
    to choose. entropy: the op's seed, or fresh entropy of the stream.
    """

    sampling: Sampling
    mask: Mask | None
    top_logprobs: int
    history: Sequence[int]
    position: int
    entropy: int


@dataclass(slots=True)
class Scored:
    """One row of logits of which the log probability of `token` is wanted."""

    token: int


class Choice(NamedTuple):
    """A chosen token. `top_logprobs` is best first, equal values by ascending id; it has fewer
    entries than asked for where the mask leaves fewer ids."""

    token: int
    logprob: float
    top_logprobs: dict[int, float]


class NothingLeft(NamedTuple):
    """The row failed: no id is possible."""

    reason: str = "the mask leaves no token id: every id of the vocabulary is forbidden"


class BrokenLogits(NamedTuple):
    """The row failed: the model computed no numbers."""

    reason: str = "the model's logits are not finite numbers; its arithmetic overflowed"


Outcome = Choice | float | NothingLeft | BrokenLogits


class Sampler:
    """Chooses and scores tokens of a vocabulary of `vocab_size` ids, 0 to vocab_size - 1. `best`:
    how it finds the best ones, as `best_and_normaliser` does."""

    def __init__(self, vocab_size: int, best: BestAndNormaliser = best_and_normaliser) -> None:
        self._vocab_size = vocab_size
        self._best = best
        self._masks = DeviceMasks(vocab_size)

    def step(self, logits: Tensor, rows: Sequence[Draw | Scored]) -> list[Outcome]:
        """One outcome per row: a `Choice` for `Draw`, a log probability for `Scored`, or why
        that row, and only that row, failed.

        logits: any float dtype, [len(rows), width]; left as they are. Computed in float32 or
        better. One transfer from device to host, whatever the number of rows.
        """
        logits = logits[:, : self._vocab_size]
        drawn = [(index, row) for index, row in enumerate(rows) if isinstance(row, Draw)]
        scored = [(index, row) for index, row in enumerate(rows) if isinstance(row, Scored)]
        parts: list[Tensor] = []
        if drawn:
            parts += self._choose(_rows(logits, drawn, len(rows)), [row for _, row in drawn])
        if scored:
            tokens = [row.token for _, row in scored]
            parts.append(_score(_rows(logits, scored, len(rows)), tokens))
        numbers = iter(_joined(parts))
        outcomes: list[Outcome] = [NothingLeft()] * len(rows)
        choices = _read_choices(numbers, [row for _, row in drawn], logits.shape[1])
        for (index, _), choice in zip(drawn, choices, strict=True):
            outcomes[index] = choice
        for index, row in scored:
            outcomes[index] = _read_score(numbers, row.token, logits.shape[1])
        return outcomes

    def _choose(self, logits: Tensor, draws: Sequence[Draw]) -> list[Tensor]:
        """What `_read_choices` reads, float64: for each row the best id, its log probability and
        the normaliser; for those that draw, the token and its log probability; ids and log
        probabilities of the rows that want more than the best one."""
        processed = self._processed(logits, draws)
        found = self._best(processed)
        normaliser = found[:, 2]
        parts = [found]
        hot = _drawing(draws)
        if hot:
            at = to_device(hot, torch.int64, logits.device)
            uniforms = [uniform(draws[index].entropy, draws[index].position) for index in hot]
            drawn = draw(processed[at], [draws[index].sampling for index in hot], uniforms)
            logprobs = processed[at, drawn] - normaliser[at]
            parts.append(torch.stack([drawn.double(), logprobs], 1))
        if _wanting_more(draws):
            parts.append(_top(processed, normaliser, draws))
        return parts

    def _processed(self, logits: Tensor, draws: Sequence[Draw]) -> Tensor:
        """float32 [rows, vocab]: penalties, then bias, then mask; -inf where forbidden."""
        processed = logits.float()
        penalties = [
            (index, row.sampling, row.history)
            for index, row in enumerate(draws)
            if row.sampling.has_penalties
        ]
        if penalties:
            processed = penalised(processed, penalties)
        if any(row.mask is not None for row in draws):
            processed = self._masks.apply(processed, [row.mask for row in draws])
        return processed


def _rows(logits: Tensor, rows: Sequence[tuple[int, object]], total: int) -> Tensor:
    """The rows of `logits` at the given indices; no copy when they are all of them, or none."""
    if len(rows) in (0, total):
        return logits[: len(rows)]
    return logits[to_device([index for index, _ in rows], torch.int64, logits.device)]


def _joined(parts: Sequence[Tensor]) -> list[float]:
    """All numbers of `parts`, by one transfer."""
    if len(parts) == 1:
        return parts[0].flatten().tolist()
    return torch.cat([part.flatten() for part in parts]).tolist() if parts else []


def _drawing(draws: Sequence[Draw]) -> list[int]:
    """Indices of the rows whose tokens are drawn."""
    return [index for index, row in enumerate(draws) if row.sampling.temperature > 0]


def _wanting_more(draws: Sequence[Draw]) -> list[int]:
    """Indices of the rows whose top log probabilities are not just the best one."""
    return [index for index, row in enumerate(draws) if row.top_logprobs > 1]


def _top(processed: Tensor, normaliser: Tensor, draws: Sequence[Draw]) -> Tensor:
    """float64 [n, 2 * k]: for each row that wants more than the best id, `k` ids, then their log
    probabilities, where `k` is the largest number any row wants. `normaliser`: of all rows."""
    wanting = _wanting_more(draws)
    count = min(max(draws[index].top_logprobs for index in wanting), processed.shape[1])
    at = to_device(wanting, torch.int64, processed.device)
    values = processed[at]
    ids = best_first(values, count)
    logprobs = values.gather(1, ids) - normaliser[at].unsqueeze(1)
    return torch.cat([ids.double(), logprobs], 1)


def _score(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """What `_read_score` reads, float64 [rows, 2]: log probability and normaliser of each row."""
    logits = logits.float()
    inside = [token if 0 <= token < logits.shape[1] else 0 for token in tokens]
    ids = to_device(inside, torch.int64, logits.device).unsqueeze(1)
    normaliser = logits.logsumexp(dim=1, keepdim=True).double()
    return torch.cat([logits.gather(1, ids) - normaliser, normaliser], 1)


def _failure(normaliser: float) -> NothingLeft | BrokenLogits | None:
    """Why a row has no distribution: its log of the summed exponentials tells."""
    if normaliser == -math.inf:
        return NothingLeft()
    return None if math.isfinite(normaliser) else BrokenLogits()


def _read_choices(numbers: Iterator[float], draws: Sequence[Draw], width: int) -> list[Outcome]:
    heads = [tuple(islice(numbers, 3)) for _ in draws]
    drawn = {index: tuple(islice(numbers, 2)) for index in _drawing(draws)}
    wanting = _wanting_more(draws)
    count = min(max((draws[index].top_logprobs for index in wanting), default=0), width)
    more = {
        index: (list(islice(numbers, count)), list(islice(numbers, count))) for index in wanting
    }
    outcomes: list[Outcome] = []
    for index, (row, head) in enumerate(zip(draws, heads, strict=True)):
        best, best_logprob, normaliser = head
        token, logprob = drawn.get(index, (best, best_logprob))
        ids, logprobs = more.get(index, ([best], [best_logprob]))
        top = zip(ids[: row.top_logprobs], logprobs[: row.top_logprobs], strict=True)
        possible = {int(id_): value for id_, value in top if value > -math.inf}
        outcomes.append(_failure(normaliser) or Choice(int(token), max(logprob, _LOWEST), possible))
    return outcomes


def _read_score(numbers: Iterator[float], token: int, width: int) -> Outcome:
    logprob, normaliser = islice(numbers, 2)
    if not 0 <= token < width:
        return NothingLeft(f"token id {token} is outside the vocabulary of {width} ids")
    return _failure(normaliser) or max(logprob, _LOWEST)
