"""How many predictions and tokens the queries cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.machine import ROOT
from benchmarks.meter import Delays, Meter
from benchmarks.queries import QUERIES, Query
from benchmarks.rote.model import TOKENIZER
from benchmarks.sides.lmql import LmqlSide
from tests.gateway_thread import GatewayThread
from tests.traffic.asking import PATIENCE, ask, model
from tests.traffic.conftest import SLOW_STEP

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


@pytest.mark.slow
async def test_the_server_generates_at_most_half_of_upstreams_tokens(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    async with Meter(work / "slow", Delays(create=0, stream=0, token=SLOW_STEP)) as meter:
        monkeypatch.setenv("REPLICATE_API_TOKEN", meter.token)
        tokens = {}
        for client in ("upstream", "ours"):
            side = LmqlSide(client, meter.url, "replicate:local/slow", TOKENIZER, tmp_path)
            try:
                await side.open()
                tokens[client] = await _all_tokens(meter, side)
            finally:
                await side.close()
    assert 0 < tokens["ours"] <= tokens["upstream"] / 2


async def _all_tokens(meter: Meter, side: LmqlSide) -> int:
    meter.begin()
    for query in QUERIES:
        answered = await side.query(query.codes, PATIENCE)
        assert answered.wall is not None, query.name
    return (await meter.traffic()).tokens
