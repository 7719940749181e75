"""LMQL's own Replicate client, unmodified, and an engine or process that is lost in mid-stream."""

from __future__ import annotations

import json

import pytest

from tests.gateway_thread import GatewayThread
from tests.lmql.alphabet import CRASH
from tests.upstream import run_upstream

pytestmark = pytest.mark.slow


def query(prompt: str, tokenizer: str) -> str:
    model = f'lmql.model("any", endpoint="replicate:local/alphabet", tokenizer="{tokenizer}")'
    return f'argmax\n    "{prompt}[X]"\nfrom\n    {model}\nwhere\n    STOPS_AT(X, ".")\n'


def test_a_query_is_answered(gateway: GatewayThread, tokenizer: str) -> None:
    done = run_upstream(query("ab", tokenizer), gateway.gateway.url)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["X"] == "cdefghijklmnopqrstuvwxyz."


def test_an_engine_that_fails_in_mid_stream_never_hangs_it(
    own_gateway: GatewayThread, tokenizer: str
) -> None:
    """An error after the fourth token would make LMQL wait for ever."""
    done = run_upstream(query(f"{CRASH}ab", tokenizer), own_gateway.gateway.url)
    assert done.returncode != 0
    assert "Error" in done.stderr
