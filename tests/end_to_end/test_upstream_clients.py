"""LMQL exactly as released, with none of our code in its process, on our servers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmtp_replicate.demo.query import QUERY
from tests.gateway_thread import GatewayThread
from tests.upstream import run_upstream

pytestmark = pytest.mark.slow


def upstream(tokenizer: str, endpoint: str, *gateway: str) -> dict[str, Any]:
    query = QUERY.replace("replicate:local/demo", endpoint).replace("<demo model>", tokenizer)
    done = run_upstream(query, *gateway)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_its_websocket_client(served: str, tokenizer: str) -> None:
    variables = upstream(tokenizer, served)
    assert variables["CLASSIFICATION"] == " positive"


def test_its_replicate_client(gateway: GatewayThread, served: str, tokenizer: str) -> None:
    variables = upstream(tokenizer, "replicate:local/demo", gateway.gateway.url)
    assert variables["CLASSIFICATION"] == " positive"
    assert variables["ANALYSIS"] == upstream(tokenizer, served)["ANALYSIS"]
