"""The query of the README, by every endpoint, with one answer."""

from __future__ import annotations

from dataclasses import dataclass

import lmql
import pytest

from lmtp_replicate.client.hub import close_process_hub
from lmtp_replicate.demo.query import QUERY, REVIEW
from tests.gateway_thread import GatewayThread

pytestmark = pytest.mark.slow

BAD_REVIEW = "The room was dirty and the staff were rude. The food was awful."


@dataclass(frozen=True)
class Answer:
    analysis: str
    classification: str
    distribution: dict[str, float]


def ask(endpoint: str, tokenizer: str, review: str = REVIEW) -> Answer:
    text = QUERY.replace(REVIEW, review)
    text = text.replace("replicate:local/demo", endpoint).replace("<demo model>", tokenizer)
    variables = lmql.run_sync(text).variables
    distribution = {option: float(p) for option, p in variables["P(CLASSIFICATION)"]}
    return Answer(variables["ANALYSIS"], variables["CLASSIFICATION"], distribution)


@pytest.fixture(scope="module")
def over_the_websocket(served: str, tokenizer: str) -> Answer:
    return ask(served, tokenizer)


def test_the_websocket_server_answers(over_the_websocket: Answer) -> None:
    assert over_the_websocket.classification == " positive"
    assert len(over_the_websocket.analysis) > 20


@pytest.mark.parametrize("form", ["model", "version", "deployment"])
def test_every_replicate_endpoint_gives_the_same_answer(
    form: str, gateway: GatewayThread, tokenizer: str, over_the_websocket: Answer
) -> None:
    endpoints = {
        "model": "replicate:local/demo",
        "version": f"replicate:local/demo/{gateway.version('demo')}",
        "deployment": "replicate:deployment/local/demo",
    }
    answer = ask(endpoints[form], tokenizer)
    assert answer.classification == " positive"
    assert answer.analysis == over_the_websocket.analysis
    assert answer.distribution == pytest.approx(over_the_websocket.distribution, abs=1e-4)


def test_an_obviously_bad_review_is_negative(gateway: GatewayThread, tokenizer: str) -> None:
    answer = ask("replicate:local/demo", tokenizer, BAD_REVIEW)
    assert answer.classification == " negative"
    assert answer.distribution[" negative"] > 0.9


def test_the_query_costs_two_predictions(gateway: GatewayThread, tokenizer: str) -> None:
    """One for the analysis, and one for the three scores; then both are known."""
    close_process_hub()  # and with it what earlier queries have learnt
    before = gateway.predictions()
    first = ask("replicate:local/demo", tokenizer)
    assert len(gateway.predictions() - before) == 2
    assert ask("replicate:local/demo", tokenizer) == first
    assert len(gateway.predictions() - before) == 2
