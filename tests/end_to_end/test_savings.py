"""The queries of `benchmarks.queries` on real float32 forwards, whose rounding depends on what
shares a step: with all savings LMQL is told the same as without any, but for that."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks.queries import QUERIES, Query
from lmtp_replicate.client.hub import close_process_hub
from tests.gateway_thread import GatewayThread
from tests.traffic.asking import SAVINGS, Heard, approximately, ask, listen, model, without

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
UNSTOPPED = ("beam, no constraint", "STOPS_BEFORE")
"""The shipped model never comes to their end."""


@pytest.mark.parametrize(
    "query",
    [query for query in QUERIES if query.name not in UNSTOPPED],
    ids=lambda query: query.name,
)
def test_all_savings_together_change_nothing(
    query: Query, gateway: GatewayThread, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = listen(monkeypatch, seeded=query.is_random)
    plain = ask(query, model("demo", without(SAVINGS), tokenizer=tokenizer))
    expected = logprobs(heard)
    heard.clear()
    close_process_hub()
    saved = ask(query, model("demo", tokenizer=tokenizer))
    assert saved == approximately(plain, TOLERANCE)
    found = logprobs(heard)
    both = expected.keys() & found.keys()
    assert both
    for place in both:
        assert found[place] == pytest.approx(expected[place], abs=TOLERANCE)


Place = tuple[tuple[int, ...], frozenset[int], int]


def logprobs(heard: Sequence[Heard]) -> dict[Place, float]:
    """What LMQL was told, by context, mask and token."""
    told = {}
    for op in heard:
        mask = frozenset(op.parameters.get("logit_bias") or ())
        context = list(op.prompt)
        for item in op.items:
            for token, logprob in (
                {item["token"]: item["logprob"]} | item.get("top_logprobs", {})
            ).items():
                told[(tuple(context), mask, token)] = logprob
            context.append(item["token"])
    return told
