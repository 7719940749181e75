"""The demo's query is the one that the README shows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from lmtp_replicate.demo.query import QUERY, REVIEW, AnalysisWriter, Answer

ROOT = Path(__file__).parent.parent.parent


def test_the_readme_shows_this_very_query() -> None:
    assert QUERY in (ROOT / "README.md").read_text(encoding="utf-8")
    assert REVIEW in QUERY


def test_the_likeliest_option_is_the_classification() -> None:
    assert (
        Answer("", {"positive": 0.2, "negative": 0.5, "neutral": 0.3}).classification == "negative"
    )


async def test_the_analysis_is_shown_once_piece_by_piece() -> None:
    """LMQL reports every step, some of them twice, some before the variable exists."""
    pieces: list[str] = []
    writer = AnalysisWriter(pieces.append)
    for value in (None, " The", " The food", " The food", " The food was good.\n"):
        state = SimpleNamespace(variable_values={} if value is None else {"ANALYSIS": value})
        await writer.add_interpreter_head_state("ANALYSIS", 0, "prompt", program_variables=state)
    assert "".join(pieces) == " The food was good."
    assert [piece for piece in pieces if piece] == [" The", " food", " was good."]
