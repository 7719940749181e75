"""The demo's LMQL query, and how it is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REVIEW = "We had a great stay. Hiking in the mountains was fabulous and the food is really good."
QUERY = rf'''argmax
    """Review: {REVIEW}\n
    Q: What is the underlying sentiment of this review and why?\n
    A:[ANALYSIS]\n
    Q: Summarizing the above analysis in a single word -- of the options "positive", "negative", and "neutral" -- how is the review best described?\n
    A:[CLASSIFICATION]"""
from lmql.model("...", endpoint="replicate:local/demo", tokenizer="<demo model>")
where STOPS_AT(ANALYSIS, "\n") and len(TOKENS(ANALYSIS)) < 200
distribution CLASSIFICATION in [" positive", " negative", " neutral"]
'''  # noqa: E501 - the query is the users' own text


@dataclass(frozen=True)
class Answer:
    """What the query found."""

    analysis: str
    #: option -> probability; they add up to 1
    distribution: dict[str, float]

    @property
    def classification(self) -> str:
        """The likeliest option."""
        return max(self.distribution, key=self.distribution.__getitem__)


async def ask(review: str, tokenizer: Path, show: Callable[[str], None]) -> Answer:
    """Run the query on `review` with the unmodified lmql; importing our package plugged us in.

    `tokenizer` is a directory; `show` receives the analysis in pieces, as it is written. Where the
    API is and its token come from the environment, as in any query. LMQL's own exceptions pass.
    """
    import lmql

    # As an argument, because LMQL would parse braces, brackets and escapes in the prompt's text.
    text = QUERY.replace(REVIEW, "{REVIEW}").replace('"<demo model>"', json.dumps(str(tokenizer)))
    query = lmql.query(text, input_variables=["REVIEW"], output_writer=AnalysisWriter(show))
    result = await query(REVIEW=review)
    options = result.variables["P(CLASSIFICATION)"]
    return Answer(
        result.variables["ANALYSIS"].strip(),
        {option.strip(): float(probability) for option, probability in options},
    )


class AnalysisWriter:
    """Follows the variable ANALYSIS; LMQL calls it at every step of the query.

    The interface is lmql.runtime.output_writer.BaseOutputWriter's, by duck typing: LMQL is
    imported only when a query runs.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._shown = ""

    async def add_interpreter_head_state(self, *state: Any, **named_state: Any) -> None:
        """`program_variables` is the last argument; it holds what is decoded so far."""
        variables = named_state["program_variables"] if named_state else state[-1]
        analysis = (variables.variable_values.get("ANALYSIS") or "").rstrip()
        if analysis.startswith(self._shown):
            self._show(analysis[len(self._shown) :])
            self._shown = analysis

    def add_compiler_output(self, code: str) -> None:
        """LMQL offers the compiled query; nobody asked for it."""
