"""How many tokens the server generates for the whole set, beside what it does for LMQL's own client
in the published comparison."""

from __future__ import annotations

from pathlib import Path

from benchmarks.command import RESULTS
from benchmarks.queries import QUERIES
from benchmarks.result import Result
from benchmarks.sides.catalog import UPSTREAM
from lmtp_replicate.client.hub import close_process_hub
from tests.gateway_thread import GatewayThread
from tests.traffic.asking import ask, model
from tests.traffic.test_nothing_left import Journal


def test_at_most_half_of_the_tokens_are_generated(gateway: GatewayThread, work: Path) -> None:
    journal = Journal(work / "published")
    for query in QUERIES:
        close_process_hub()  # nothing is known from earlier queries
        ask(query, model("published"))
    gateway.wait_until_quiet()
    journal.wait_until_idle()
    published = Result.load(RESULTS / "traffic.json")
    upstream = sum(published.median(UPSTREAM, query.name, "tokens") or 0 for query in QUERIES)
    assert 0 < sum(journal.tokens) <= upstream / 2
