"""The fixed set of LMQL queries whose traffic is measured and tested, and what the model that
answers them knows by heart (see `benchmarks.rote`)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lmtp_replicate.demo.query import QUERY, REVIEW


@dataclass(frozen=True, slots=True)
class Query:
    """`codes` are started together. `most_predictions`: more are too many; None where no number
    was promised."""

    name: str
    codes: tuple[str, ...]
    most_predictions: int | None = None
    is_random: bool = False


def _mission() -> str:
    """The README's query, without its model."""
    return re.sub(r"\nfrom lmql.model\(.*\)\n", "\n", QUERY)


STARTS = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Greta", "Henry")

QUERIES = (
    Query("mission", (_mission(),), 2),
    Query(
        "in, twice",
        (
            'argmax "The sky is[SKY] and the grass is[GRASS]." '
            'where SKY in [" light blue", " light grey", " red"] and '
            'GRASS in [" green", " brown", " dry"]',
        ),
        3,
    ),
    Query(
        "REGEX date",
        (
            'argmax "It is the last day of June, so today is [DATE] in short." '
            'where REGEX(DATE, r"[0-9]{2}/[0-9]{2}")',
        ),
        4,
    ),
    Query(
        "INT",
        (
            'argmax "A week has this many hours: [HOURS]" '
            "where INT(HOURS) and len(TOKENS(HOURS)) < 6",
        ),
    ),
    Query(
        "sample, n=3",
        ('sample(n=3, temperature=0.8) "Once upon a time[STORY]" where len(TOKENS(STORY)) < 20',),
        is_random=True,
    ),
    Query("beam, n=2", ('beam(n=2) "The best room has[ROOM]" where len(TOKENS(ROOM)) < 8',)),
    Query(
        "beam, no constraint",
        ('beam(n=2, max_len=48) "The breakfast was[MEAL]"',),
    ),
    Query(
        "beam, in",
        (
            'beam(n=2) "The hotel was[HOTEL]" where HOTEL in '
            '[" very clean and very quiet at night", " very clean and very cheap for us", '
            '" rather old"]',
        ),
        8,
    ),
    Query(
        "STOPS_BEFORE",
        ('argmax "The rules of the house:[RULES]" where STOPS_BEFORE(RULES, "##")',),
        3,
    ),
    Query(
        "four list items",
        (
            'argmax "To pack:\\n-[A]-[B]-[C]-[D]" where '
            + " and ".join(
                f'STOPS_AT({name}, "\\n") and len(TOKENS({name})) < 12' for name in "ABCD"
            ),
        ),
        4,
    ),
    Query(
        "distribution over 8",
        (
            'argmax "The guest wrote:[NOTE] The guest was[MOOD]" where len(TOKENS(NOTE)) < 4 '
            'distribution MOOD in [" happy", " sad", " angry", " bored", " tired", " excited", '
            '" surprised", " worried"]',
        ),
        2,
    ),
    Query(
        "8 in parallel",
        tuple(
            f'argmax "The name {name} comes from[ORIGIN]" where len(TOKENS(ORIGIN)) < 6'
            for name in STARTS
        ),
        2,
    ),
)

END = "\0"
"""In a text: the model ends there by itself. Elsewhere one text runs into the next, as a base model
writes on until it is stopped."""
TEXTS = (
    f"Review: {REVIEW}\n\nQ: What is the underlying sentiment of this review and why?\n\n"
    "A: The sentiment is positive, because the guest enjoyed the stay, the mountains and the food."
    '\n\nQ: Summarizing the above analysis in a single word -- of the options "positive", '
    '"negative", and "neutral" -- how is the review best described?\n\nA: positive',
    "The sky is light blue and the grass is green.",
    "It is the last day of June, so today is 30/06 in short.",
    "A week has this many hours: 168",
    "Once upon a time there was a small hotel by the sea, and nobody knew who had built it there.",
    "The best room has a view of the lake and a very good bed.",
    "The breakfast was fresh and warm, with bread, eggs and fruit, and the staff was friendly."
    + END,
    "The hotel was very clean and very quiet at night" + END,
    "The rules of the house: Please be quiet after ten. Please do not smoke in the rooms. Please "
    "leave the keys at the desk. Dogs are welcome, but not in the dining room. Breakfast is from "
    "seven to ten. The pool opens at nine and closes at eight. Towels are changed every second "
    "day. Please close the windows when it rains. Thank you, and have a good stay.##",
    "To pack:\n- warm socks for two\n- a good rain coat\n- maps of the lake\n- bread and tea\n",
    "The guest wrote: It was great The guest was happy" + END,
    *(
        f"The name {name} comes from {land} and is old."
        for name, land in zip(
            STARTS,
            ("Greece", "Wales", "Rome", "Israel", "Spain", "France", "Norway", "England"),
            strict=True,
        )
    ),
)
