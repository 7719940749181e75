"""One opinion, or none, in many wordings."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.demo_model import vocabulary as words

#: One in so many (noun, adjective) pairs is kept for the held-out reviews and never trained on.
HELD_OUT_SHARE = 10
#: The first adjectives of a list are those that people use most.
COMMON = 12


@dataclass(frozen=True)
class Clause:
    """A part of a review: its wording, and +1, 0 or -1.

    `joins` says whether the wording can stand beside another one in a sentence.
    """

    text: str
    score: int
    joins: bool = True


def is_held_out(noun: str, opinion: str) -> bool:
    """Whether this pair belongs to the held-out reviews (the same on every machine)."""
    digest = hashlib.sha256(f"{noun}|{opinion}".encode()).digest()
    return digest[0] % HELD_OUT_SHARE == 0


def article(following: str) -> str:
    """ "a" or "an", by the first letter; "an hour" does not occur here."""
    return "an" if following[0] in "aeiou" and not following.startswith(("uni", "use")) else "a"


def pseudo_word(rng: random.Random) -> str:
    """A word that no tokenizer has seen, so that citing is learned as copying."""
    syllables = rng.randint(1, 3)
    body = "".join(
        rng.choice("bcdfghjklmnprstvwz") + rng.choice(("a", "e", "i", "o", "u", "ee", "ou"))
        for _ in range(syllables)
    )
    return body + rng.choice(("", "n", "r", "st", "ck", "l"))


class NoSuchPairError(Exception):
    """This noun has no suitable opinion on this side of the split."""


class ClauseMaker:
    """Draws clauses from `rng`; `held_out` chooses the side of the split they come from."""

    def __init__(self, rng: random.Random, *, held_out: bool) -> None:
        self._rng = rng
        self._held_out = held_out

    def clause(self, score: int) -> Clause:
        """A clause with an opinion of this score (0: lukewarm, or no opinion at all)."""
        forms = {
            self._predicate: 38,
            self._attribute: 20,
            self._had: 10,
            self._feeling: 8,
            self._found: 6,
            self._bare: 6,
            self._remark: 12,
        }
        while True:
            form = self._rng.choices(tuple(forms), tuple(forms.values()))[0]
            try:
                return form(score)
            except NoSuchPairError:
                continue

    def _predicate(self, score: int) -> Clause:
        """ "the room was very clean and quiet"; negated: "the room was not clean"."""
        group, noun, plural = self._noun()
        negate = score != 0 and self._rng.random() < 0.2
        opinion = self._opinion(-score if negate else score, group, noun)
        if not negate and self._rng.random() < 0.12:
            opinion = f"{opinion} and {self._opinion(score, group, noun)}"
        verb = self._rng.choice(("were", "were", "are") if plural else ("was", "was", "is"))
        if negate:
            very = " very" if " " not in opinion and self._rng.random() < 0.3 else ""
            verb += self._rng.choice((" not", " not", "n't")) + very
        determiner = self._determiner(noun, plural=plural)
        return Clause(f"{determiner}{noun} {verb} {self._degree(opinion, negate)}{opinion}", score)

    def _attribute(self, score: int) -> Clause:
        """ "great food", "what a lovely room", "they have terrible coffee"."""
        group, noun, plural = self._noun(activities=False)
        opinion = self._opinion(score, group, noun, attributive=True)
        a = "" if plural or group == "food" else f"{article(opinion)} "
        starts = (f"they have {a}", f"there was {a}", f"we had {a}", f"such {a}", f"with {a}")
        start = self._rng.choice(("", "", "", "the ", "what ", *starts))
        if start == "what ":
            start = f"what {a}"
        if plural and start == "there was ":
            start = "there were "
        return Clause(f"{start}{opinion} {noun}", score)

    def _had(self, score: int) -> Clause:
        """ "we had a great stay", "it was an awful evening"."""
        noun = self._rng.choice(words.STAYS)
        opinion = self._opinion(score, "any", noun, attributive=True)
        start = self._rng.choice(
            ("we had", "I had", "it was", "we really had", "all in all", "had")
        )
        return Clause(f"{start} {article(opinion)} {opinion} {noun}", score)

    def _feeling(self, score: int) -> Clause:
        """ "we loved the food", "I tried the soup"."""
        verbs = {1: words.LIKED, -1: words.DISLIKED, 0: words.TRIED}[score]
        _, noun, _ = self._noun()
        verb = self._allowed(verbs, noun)
        subject = self._rng.choice(
            ("we", "I", "my wife and I", "everyone", "our kids", "my friends")
        )
        text = f"{subject} {verb} {_the(noun)}{noun}"
        if subject in ("I", "everyone"):
            text = text.replace(" were ", " was ", 1)
        if subject == "everyone":
            text = text.replace(" recommend", " recommends", 1).replace(" do ", " does ", 1)
            text = text.replace("does not recommends", "does not recommend")
        return Clause(text, score)

    def _found(self, score: int) -> Clause:
        """ "I found the room dirty"."""
        group, noun, plural = self._noun()
        opinion = self._opinion(score, group, noun)
        verb = self._rng.choice(("we found", "I found", "I thought", "we thought"))
        middle = " " if verb.endswith("found") else " were " if plural else " was "
        return Clause(f"{verb} {_the(noun)}{noun}{middle}{opinion}", score)

    def _bare(self, score: int) -> Clause:
        """ "just terrible", "it was great"."""
        opinion = self._opinion(score, "any", "it")
        start = self._rng.choice(("", "", "it was ", "it is ", "this place is ", "this was "))
        return Clause(f"{start}{self._degree(opinion)}{opinion}", score)

    def _remark(self, score: int) -> Clause:
        """Something about the visit as a whole, or a fact that speaks for itself."""
        pick = self._rng.choice
        if score == 0:
            return Clause(pick(words.SCENES), 0)
        if score == 1 or self._rng.random() < 0.5:
            return Clause(
                pick(words.PRAISE if score == 1 else words.COMPLAINTS), score, joins=False
            )
        facts = (
            f"there was {pick(words.DIRT)} in the {pick(words.DIRTY_PLACES)}",
            f"the {pick(words.DEVICES)} did not work",
            f"the {pick(words.DEVICES)} was out of order",
            f"we waited {pick(words.LONG_TIMES)} for {pick(words.AWAITED)}",
            f"we waited {pick(words.LONG_TIMES)} for {pick(words.AWAITED)}",
        )
        return Clause(pick(facts), score)

    def _noun(self, *, activities: bool = True) -> tuple[str, str, bool]:
        """(group, noun, whether it is plural)."""
        draw = self._rng.random()
        if draw < 0.06:
            return self._rng.choice(("food", "place", "thing")), pseudo_word(self._rng), False
        if activities and draw < 0.16:
            return "any", self._rng.choice(words.ACTIVITIES), False
        plural = draw < 0.40
        table = words.PLURAL if plural else words.SINGULAR
        group = self._rng.choice(tuple(table))
        return group, self._rng.choice(table[group]), plural

    def _opinion(self, score: int, group: str, noun: str, *, attributive: bool = False) -> str:
        """An adjective of this score that suits the noun, from the right side of the split."""
        table = {1: words.POSITIVE, -1: words.NEGATIVE, 0: words.NEUTRAL}[score]
        draw = self._rng.random()
        choices = table["any"][:COMMON] if draw < 0.25 else table["any"]
        if draw > 0.6:
            choices = table.get(group, choices)
        if attributive:
            choices = tuple(opinion for opinion in choices if " " not in opinion)
        return self._allowed(choices, noun)

    def _allowed(self, opinions: Sequence[str], noun: str) -> str:
        """One of `opinions` that makes a pair with `noun` on our side of the split."""
        ours = [word for word in opinions if is_held_out(noun, word) == self._held_out]
        if not ours:
            raise NoSuchPairError
        return self._rng.choice(ours)

    def _degree(self, opinion: str, negated: bool = False) -> str:
        if negated or " " in opinion or self._rng.random() < 0.65:
            return ""
        return self._rng.choice(words.DEGREES) + " "

    def _determiner(self, noun: str, *, plural: bool) -> str:
        if not _the(noun):
            return ""
        this = "these " if plural else "this "
        return self._rng.choice(("the ", "the ", "the ", "the ", "our ", this, "their ", ""))


def _the(noun: str) -> str:
    """ "the ", except before activities and "everything"."""
    return "" if noun in words.ACTIVITIES or noun == "everything" else "the "
