"""The correctness guard: speed bought with wrong tokens counts as zero.

Every answer is followed by one forward of the plain transformers model in float32, one stream at a
time, without a cache. A token is right where no other has a higher logit; where the best is ahead
by no more than rounding can be, either is right and it counts as a near tie.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.result import Agreement
from benchmarks.sides.side import Batch, ChainAnswer, FanOutAnswer, Side
from benchmarks.workload import Chain, Mask, Request

TOLERANCE = 1e-3
"""Of logits and log probabilities: twice what float32 rounding makes of this model's with other
kernels than the plain ones (5e-4)."""
BFLOAT16_TOLERANCE = 0.5
"""The same for a model that is run in bfloat16, which keeps 8 bits: log probabilities of the same
positions, decoded and prefilled, have been seen to differ by 0.34."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`masks`: none, or one for each token."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    masks: tuple[Mask, ...] = ()


class Oracle:
    """Remembers what it has computed: sides mostly agree."""

    def __init__(self, folder: Path, device: str = "cpu", tolerance: float = TOLERANCE) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._model = model.eval().to(device)
        self._tolerance = tolerance
        self._gaps: dict[Answer, list[float]] = {}

    def check(self, answers: Iterable[Answer]) -> Agreement:
        """Of one side's greedy tokens."""
        gaps = [gap for answer in answers for gap in self._of(answer)]
        return Agreement(
            tokens=len(gaps),
            near_ties=sum(0 < gap <= self._tolerance for gap in gaps),
            wrong=sum(gap > self._tolerance for gap in gaps),
            largest_gap=max(gaps, default=0.0),
        )

    def _of(self, answer: Answer) -> list[float]:
        if answer not in self._gaps:
            self._gaps[answer] = self._compute(answer)
        return self._gaps[answer]

    @torch.inference_mode()
    def _compute(self, answer: Answer) -> list[float]:
        """By how much each token's logit is below the best allowed one."""
        tokens = torch.tensor([answer.prompt + answer.tokens[:-1]], device=self._model.device)
        logits = self._model(tokens, logits_to_keep=len(answer.tokens)).logits[0].cpu()
        for row, mask in enumerate(answer.masks):
            allowed = torch.full((logits.shape[1],), not mask.is_whitelist)
            allowed[list(mask.ids)] = mask.is_whitelist
            logits[row, ~allowed] = float("-inf")
        chosen = logits.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
        return (logits.amax(1) - chosen).tolist()


class FirstAnswers:
    """Each side's answers of the first round."""

    def __init__(self) -> None:
        self._answers: dict[str, list[Answer]] = {}

    def keep(self, side: Side, requests: Sequence[Request], batch: Batch) -> None:
        kept = self._answers.setdefault(side.name, [])
        for request, trace in zip(requests, batch.traces, strict=True):
            kept.append(Answer(request.prompt, tuple(trace.tokens)))

    def check(self, oracle: Oracle) -> dict[str, Agreement]:
        return {side: oracle.check(answers) for side, answers in self._answers.items()}


def chain_answers(chain: Chain, answer: ChainAnswer) -> list[Answer]:
    """All ops as one answer: each continues the one before."""
    tokens = tuple(token for op in answer.answers for token in op)
    masks = tuple(
        mask
        for op in range(chain.ops)
        for mask in [chain.mask(op)] * chain.max_tokens
        if mask is not None
    )
    return [Answer(chain.prompt, tokens, masks)]


def with_scores(
    agreement: Agreement, scores: Sequence[FanOutAnswer], reference: Sequence[FanOutAnswer]
) -> Agreement:
    """`agreement` and how far `scores` are from those of the `reference` side."""
    errors = [
        abs(mine - theirs)
        for answer, other in zip(scores, reference, strict=True)
        for mine, theirs in zip(_flat(answer), _flat(other), strict=True)
    ]
    return agreement.model_copy(
        update={
            "scores": len(errors),
            "largest_score_error": max(errors, default=0.0),
            "wrong_scores": sum(error > TOLERANCE for error in errors),
        }
    )


def _flat(answer: FanOutAnswer) -> list[float]:
    return [value for options in answer.scores for scores in options for value in scores]
