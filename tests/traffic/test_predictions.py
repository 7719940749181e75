"""How many predictions the queries cost."""

from __future__ import annotations

import pytest

from benchmarks.queries import QUERIES, Query
from tests.gateway_thread import GatewayThread
from tests.traffic.asking import ask, model

PROMISED = [query for query in QUERIES if query.most_predictions is not None]


@pytest.mark.parametrize("query", PROMISED, ids=lambda query: query.name)
def test_no_query_costs_more_predictions_than_promised(
    query: Query, gateway: GatewayThread
) -> None:
    before = gateway.predictions()
    ask(query, model())
    gateway.wait_until_quiet()
    assert query.most_predictions is not None
    assert 1 <= len(gateway.predictions() - before) <= query.most_predictions


def test_what_beams_will_need_travels_with_what_they_need(gateway: GatewayThread) -> None:
    """The result is the same, as test_same_results says."""
    [query] = (query for query in QUERIES if query.name == "beam, no constraint")

    def made(settings: str) -> int:
        before = gateway.predictions()
        ask(query, model(settings=settings))
        gateway.wait_until_quiet()
        return len(gateway.predictions() - before)

    without = made("?ahead=off")
    # A machine that stalls in the middle of a burst cuts it in two, which costs one more.
    assert any(made("") < without for _ in range(3))
