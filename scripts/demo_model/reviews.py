"""Reviews with their analysis and their one-word classification.

A review praises, complains, does both or neither. The label counts opinions: more praise than
complaints is positive, fewer is negative, as many as complaints (also none) is neutral.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from scripts.demo_model.clauses import Clause, ClauseMaker

#: How often a review is of each kind.
KINDS = {"praise": 0.27, "complaint": 0.27, "neither": 0.16, "both": 0.30}
#: How often somebody writes without capitals.
LOWER_CASE = 0.18
#: What the analysis says about a clause.
MARKS = {1: "praise", 0: "neutral", -1: "complaint"}
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
    if rng.random() < LOWER_CASE:
        clauses = [replace(clause, text=clause.text.lower()) for clause in clauses]
        review, quotes = _write(rng, clauses, capital=False)
    else:
        review, quotes = _write(rng, clauses, capital=True)
    verdict = VERDICTS[_verdict(clauses)]
    marks = [
        f"{quote} ({MARKS[clause.score]})" for quote, clause in zip(quotes, clauses, strict=True)
    ]
    analysis = f" The reviewer says: {'; '.join(marks)}. {verdict}"
    return Example(review, analysis, verdict.rsplit(" ", 1)[1].rstrip("."))


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


def _verdict(clauses: list[Clause]) -> str:
    praise = sum(clause.score > 0 for clause in clauses)
    complaint = sum(clause.score < 0 for clause in clauses)
    if not (praise and complaint):
        return "praise" if praise else "complaint" if complaint else "neither"
    if praise == complaint:
        return "balance"
    return "more praise" if praise > complaint else "more complaint"


def _write(rng: random.Random, clauses: list[Clause], *, capital: bool) -> tuple[str, list[str]]:
    """The review, in the style of one writer, and each clause as it stands there."""
    usual = rng.choices((".", "!"), (8, 2))[0]
    text, quotes = "", []
    previous: Clause | None = None
    for clause in clauses:
        wording = clause.text
        if previous and previous.joins and clause.joins and rng.random() < 0.5:
            text += _joint(rng, previous, clause)
            previous = None
        else:
            if text:
                text += rng.choices((usual, ".", "!"), (6, 3, 1))[0] + " "
            if capital:
                wording = wording[0].upper() + wording[1:]
            previous = clause
        text += wording
        quotes.append(wording)
    return text + rng.choices((usual, ""), (10, 1))[0], quotes


def _joint(rng: random.Random, first: Clause, second: Clause) -> str:
    if first.score * second.score < 0:
        return rng.choice((" but ", ", but ", ", but ", " although ", ", however ", "; "))
    return rng.choice((" and ", " and ", ", and ", ", "))
