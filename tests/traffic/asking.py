"""Asks the queries, and hears all that LMQL is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import lmql
import pytest

import lmtp_replicate  # noqa: F401 - the plug-in
from benchmarks.queries import Query
from benchmarks.rote.model import TOKENIZER, rote_model
from lmtp_replicate.client.settings import Savings
from lmtp_replicate.lmql.bridge import LMTPReplicateClient

SAVINGS = [saving.name for saving in fields(Savings)]
PATIENCE = 60
"""Seconds after which a query that hangs fails its test."""


def without(names: Sequence[str]) -> str:
    """An endpoint's settings that switch these savings off."""
    return "?" + "&".join(f"{name}=off" for name in names)


def model(name: str = "rote", settings: str = "", *, tokenizer: Path | str = TOKENIZER) -> lmql.LLM:
    """`name` of our gateway; `settings` as in an endpoint, with their "?"."""
    rote_model()  # imports what LMQL would import in several threads at once
    return lmql.model(f"replicate:local/{name}{settings}", tokenizer=str(tokenizer))


def ask(query: Query, model: lmql.LLM) -> list[Mapping[str, Any]]:
    """The variables of each result."""

    async def run() -> list[Any]:
        async with asyncio.timeout(PATIENCE):
            return await asyncio.gather(*(lmql.run(code, model=model) for code in query.codes))

    answers = asyncio.run(run())
    results = [one for each in answers for one in (each if isinstance(each, list) else [each])]
    return [result.variables for result in results]


def approximately(answers: Sequence[Mapping[str, Any]], tolerance: float) -> list[dict[str, Any]]:
    """`answers`, whose distributions may differ by `tolerance`."""
    return [
        {
            name: [(option, pytest.approx(number, abs=tolerance)) for option, number in value]
            if isinstance(value, list)
            else value
            for name, value in answer.items()
        }
        for answer in answers
    ]


@dataclass(frozen=True)
class Heard:
    """One op of LMQL's, and the items that it read. `scored` is None for a GENERATE."""

    prompt: Sequence[int]
    parameters: Mapping[str, Any]
    scored: Sequence[int] | None = None
    items: list[Mapping[str, Any]] = field(default_factory=list)


def listen(patch: pytest.MonkeyPatch, *, seeded: bool = False) -> list[Heard]:
    """What LMQL asks and reads from now on. With `seeded`, each op of a query gets a seed."""
    heard: list[Heard] = []
    generate, score = LMTPReplicateClient.generate, LMTPReplicateClient.score

    def hear_generate(
        self: LMTPReplicateClient, prompt: Sequence[int], **parameters: Any
    ) -> AsyncIterator[Mapping[str, Any]]:
        heard.append(Heard(list(prompt), dict(parameters)))
        seed = {"seed": len(heard)} if seeded else {}
        return _Ear(generate(self, prompt, **parameters, **seed), heard[-1].items)

    def hear_score(
        self: LMTPReplicateClient, prompt: Sequence[int], scored: Sequence[int], **parameters: Any
    ) -> AsyncIterator[Mapping[str, Any]]:
        heard.append(Heard(list(prompt), {}, list(scored)))
        return _Ear(score(self, prompt, scored, **parameters), heard[-1].items)

    patch.setattr(LMTPReplicateClient, "generate", hear_generate)
    patch.setattr(LMTPReplicateClient, "score", hear_score)
    return heard


class _Ear(AsyncIterator[Mapping[str, Any]]):
    """Keeps nothing alive that LMQL drops."""

    def __init__(
        self, stream: AsyncIterator[Mapping[str, Any]], items: list[Mapping[str, Any]]
    ) -> None:
        self._stream = stream
        self._items = items

    async def __anext__(self) -> Mapping[str, Any]:
        item = await anext(self._stream)
        self._items.append(item)
        return item
