"""Reviews with their analysis and their one-word classification.

A review praises, complains, does both or neither. The label counts opinions: more praise than
complaints is positive, fewer is negative, as many as complaints (also none) is neutral.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from scripts.demo_model.clauses import Clause, ClauseMaker

#: How often a review is of each kind.
KINDS = {"praise": 0.27, "complaint": 0.27, "neither": 0.16, "both": 0.30}
VERDICTS = {
    "praise": "That is clear praise, so the sentiment is positive.",
    "complaint": "That is a clear complaint, so the sentiment is negative.",
    "neither": "That is neither praise nor complaint, so the sentiment is neutral.",
    "more praise": "That is more praise than complaint, so the sentiment is positive.",
    "more complaint": "That is more complaint than praise, so the sentiment is negative.",
    "balance": "Praise and complaint balance, so the sentiment is neutral.",
}
WHY = "What is the underlying sentiment of this review and why?"
WHICH = (
    "Summarizing the above analysis in a single word -- of the options "
    '"positive", "negative", and "neutral" -- how is the review best described?'
)


@dataclass(frozen=True)
class Example:
    """A review, its analysis (one line, starting with a space) and its label."""

    review: str
    analysis: str
    label: str

    def prompt(self, gap: str = "\n\n") -> str:
        """The text up to the analysis. LMQL writes two line breaks where the query shows one."""
        return f"Review: {self.review}{gap}Q: {WHY}{gap}A:"

    def question(self, gap: str = "\n\n") -> str:
        """The text between the analysis, which ends with its own line break, and the label."""
        return f"{gap}Q: {WHICH}{gap}A:"


def make_example(rng: random.Random, *, held_out: bool = False) -> Example:
    """Draw one example; `held_out` ones use noun-adjective pairs that are never trained on."""
    maker = ClauseMaker(rng, held_out=held_out)
    clauses = [maker.clause(score) for score in _scores(rng)]
    analysis, label = _analysis(clauses)
    return Example(_review(rng, clauses), analysis, label)


def _scores(rng: random.Random) -> list[int]:
    kind = rng.choices(tuple(KINDS), tuple(KINDS.values()))[0]
    size = rng.choices((1, 2, 3, 4), (4, 6, 5, 2))[0]
    if kind == "both":
        scores = [1, -1, *rng.choices((1, -1), k=rng.choices((0, 1, 2), (5, 4, 2))[0])]
    else:
        scores = [{"praise": 1, "complaint": -1, "neither": 0}[kind]] * size
        if rng.random() < 0.25:
            scores.append(0)
    rng.shuffle(scores)
    return scores


def _analysis(clauses: list[Clause]) -> tuple[str, str]:
    """The analysis and the label."""
    praise = sum(clause.score > 0 for clause in clauses)
    complaint = sum(clause.score < 0 for clause in clauses)
    if praise and complaint:
        verdict = "balance" if praise == complaint else "more praise"
        if praise < complaint:
            verdict = "more complaint"
    else:
        verdict = "praise" if praise else "complaint" if complaint else "neither"
    label = VERDICTS[verdict].rsplit(" ", 1)[1].rstrip(".")
    cites = [clause.cite for clause in clauses if clause.cite]
    if not cites:
        said = "only describes what happened"
    elif len(cites) == 1:
        said = f"says that {cites[0]}"
    else:
        said = f"says that {', '.join(cites[:-1])} and {cites[-1]}"
    return f" The reviewer {said}. {VERDICTS[verdict]}", label


def _review(rng: random.Random, clauses: list[Clause]) -> str:
    """Sentences from clauses, in the style of one writer."""
    lower = rng.random() < 0.18
    stop = rng.choices((".", "!", ""), (8, 2, 1))[0]
    sentences: list[str] = []
    previous: Clause | None = None
    for clause in clauses:
        if previous and previous.joins and clause.joins and rng.random() < 0.5:
            sentences[-1] += _joint(rng, previous, clause) + clause.text
            previous = None
            continue
        sentences.append(clause.text)
        previous = clause
    if not lower:
        sentences = [text[0].upper() + text[1:] for text in sentences]
    ends = [rng.choices((stop or ".", ".", "!"), (6, 3, 1))[0] for _ in sentences]
    ends[-1] = stop
    text = " ".join(sentence + end for sentence, end in zip(sentences, ends, strict=True))
    return text.lower() if lower else text


def _joint(rng: random.Random, first: Clause, second: Clause) -> str:
    if first.score * second.score < 0:
        return rng.choice((" but ", ", but ", ", but ", " although ", ", however ", "; "))
    return rng.choice((" and ", " and ", ", and ", ", "))
