"""The line about costs after a query, for those who ask for it."""

from __future__ import annotations

import re

import lmql
import pytest

import lmtp_replicate
from lmtp_replicate.client.hub import close_process_hub
from lmtp_replicate.lmql.summary import VARIABLE
from tests.client.replicate_double import PREDICT_TIME, ReplicateDouble
from tests.gateway_thread import GatewayThread

QUERY = 'argmax "ab[X]" where STOPS_AT(X, "d") and len(TOKENS(X)) < 90'


def told(capfd: pytest.CaptureFixture[str]) -> list[str]:
    close_process_hub()  # nothing is left to wait for
    return [line for line in capfd.readouterr().err.splitlines() if "this query" in line]


async def test_each_query_says_what_it_has_cost(
    replicate: ReplicateDouble,
    tokenizer: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    replicate.engine._step_seconds = 0.02
    model = lmql.model("replicate:org/model?memory=off", tokenizer=tokenizer)
    for _ in range(2):
        assert (await lmql.run(QUERY, model=model)).variables["X"] == "cd"
    lines = told(capfd)
    assert len(lines) == 2
    for line in lines:
        assert "predictions 1, ops 1; tokens 89 requested" in line
        assert f"GPU seconds {PREDICT_TIME}" in line  # it was cancelled, which told
    used = [int(number) for line in lines for number in re.findall(r"(\d+) used", line)]
    assert all(2 <= number < 89 for number in used)


def test_also_when_the_query_fails(
    replicate: ReplicateDouble,
    tokenizer: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    model = lmql.model("replicate:org/model", tokenizer=tokenizer)

    @lmql.query(model=model)
    def query():
        """lmql
        argmax
            "ab[X]" where len(TOKENS(X)) < 4
            1 / 0
        """

    with pytest.raises(ZeroDivisionError):
        query()
    assert len(told(capfd)) == 1


def test_our_server_tells_its_seconds_by_itself(gateway: GatewayThread, tokenizer: str) -> None:
    """Predictions that end by themselves are timed, though nobody asks Replicate about them."""
    before = lmtp_replicate.stats()
    model = lmql.model("replicate:local/alphabet", tokenizer=tokenizer)
    lmql.run_sync('argmax "ab[X]?[Y]" where len(TOKENS(X)) < 3 and len(TOKENS(Y)) < 3', model=model)
    gateway.wait_until_quiet()
    cost = lmtp_replicate.stats() - before
    assert cost.predictions_timed == cost.predictions == 2


def test_silence_unless_asked(
    replicate: ReplicateDouble,
    tokenizer: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(VARIABLE, "0")
    model = lmql.model("replicate:org/model", tokenizer=tokenizer)
    lmql.run_sync(QUERY, model=model)
    assert told(capfd) == []
