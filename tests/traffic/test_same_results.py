"""Whatever is saved, LMQL is told the same: with each saving off, each on, and all on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from benchmarks.queries import QUERIES, Query
from benchmarks.rote.engine import masked
from benchmarks.rote.model import log_softmax, rote_model
from lmtp_replicate.protocol.masks import Mask
from tests.gateway_thread import GatewayThread
from tests.traffic.asking import SAVINGS, Heard, approximately, ask, listen, model, without

TOLERANCE = 1e-5
"""Of log probabilities, which a compact answer may round."""
Answers = dict[str, list[Mapping[str, Any]]]


SETTINGS = {
    "all on": "",
    **{f"{name} off": without([name]) for name in SAVINGS},
    **{f"{name} alone": without([n for n in SAVINGS if n != name]) for name in SAVINGS},
}


@pytest.fixture(scope="module")
def plain() -> Answers:
    """What each query answers without any saving, once it was asked."""
    return {}


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.name)
@pytest.mark.parametrize("name", SETTINGS)
def test_an_answer_does_not_depend_on_what_is_saved(
    name: str,
    query: Query,
    gateway: GatewayThread,
    plain: Answers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Draws are made repeatable by a seed for each op."""
    heard = listen(monkeypatch, seeded=query.is_random)
    if query.name not in plain:
        plain[query.name] = ask(query, model(settings=without(SAVINGS)))
        heard.clear()
    assert ask(query, model(settings=SETTINGS[name])) == approximately(plain[query.name], TOLERANCE)
    check(heard)


def test_samples_are_drawn_afresh(gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch) -> None:
    [query] = (query for query in QUERIES if query.is_random)
    heard = listen(monkeypatch)
    texts = {str(variables) for _ in range(4) for variables in ask(query, model())}
    assert len(texts) > 3
    check(heard)


def check(heard: Sequence[Heard]) -> None:
    """Everything that LMQL has read is what the model says at that place, under that op's mask."""
    assert any(op.items for op in heard)
    for op in heard:
        context = list(op.prompt)
        for item in op.items:
            _check_item(item, context, op)
            context.append(item["token"])


def _check_item(item: Mapping[str, Any], context: Sequence[int], op: Heard) -> None:
    oracle = rote_model()
    if op.scored is not None:
        assert item["token"] == op.scored[len(context) - len(op.prompt)]
    mask = Mask.from_logit_bias(op.parameters.get("logit_bias") or {})
    expected = log_softmax(masked(oracle.logits(context), mask))
    told = {item["token"]: item["logprob"], **item.get("top_logprobs", {})}
    for token, logprob in told.items():
        assert logprob == pytest.approx(expected[token], abs=TOLERANCE)
    if op.scored is None and not op.parameters.get("temperature"):
        assert item["token"] == expected.argmax()
