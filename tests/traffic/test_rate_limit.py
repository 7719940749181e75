"""An account that may create 60 predictions a minute, and 100 queries at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

import lmql
import pytest

from lmtp_replicate.client import limiter
from lmtp_replicate.client.burst import MOST_ITERATIONS
from lmtp_replicate.client.hub import close_process_hub
from lmtp_replicate.gateway.problems import ProblemError
from tests.gateway_thread import GatewayThread
from tests.traffic.asking import PATIENCE, model

pytestmark = pytest.mark.slow

LIMIT = 60
MOST_REFUSED = 5
MINUTE = 1.5
"""Seconds that stand for a minute, for the client as for the gateway."""
NAMES = 100
APART = 2 * MOST_ITERATIONS
"""Iterations of the loop between two queries' starts: too many for one burst."""
CODE = (
    'argmax "Guest {name}: the sky is[X] and the grass[Y]" '
    'where len(TOKENS(X)) < 3 and Y in [" red", " green"]'
)


class Creates:
    """When creates were accepted and refused, on the gateway's clock."""

    def __init__(self) -> None:
        self.accepted: list[float] = []
        self.refused: list[float] = []


@pytest.fixture
def creates(gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch) -> Iterator[Creates]:
    """Those of a gateway that is limited; a client that does not know it yet."""
    faults, seen = gateway.gateway.faults, Creates()
    usual = faults.before_create

    async def noted() -> None:
        try:
            await usual()
        except ProblemError:
            seen.refused.append(time.monotonic())
            raise
        seen.accepted.append(time.monotonic())

    monkeypatch.setattr(faults, "before_create", noted)
    monkeypatch.setattr(faults, "creates_per_minute", LIMIT)
    monkeypatch.setattr(faults, "minute", MINUTE)
    monkeypatch.setattr(limiter, "MINUTE", MINUTE)
    yield seen
    close_process_hub()


@pytest.mark.parametrize("settings", ["", "?coalesce=off"])
async def test_a_hundred_queries_wait_instead_of_failing(settings: str, creates: Creates) -> None:
    llm = model(settings=settings)
    query = lmql.query(CODE, input_variables=["name"])

    async def ask(number: int) -> lmql.LMQLResult:
        for _ in range(number * APART):
            await asyncio.sleep(0)
        return await query(name=str(number), model=llm)

    async with asyncio.timeout(PATIENCE):
        answers = await asyncio.gather(*map(ask, range(NAMES)))
    assert all(answer.variables["Y"] in (" red", " green") for answer in answers)
    assert most_in_a_minute(creates.accepted) <= LIMIT
    assert most_in_a_minute(creates.refused) <= MOST_REFUSED
    if settings:
        assert len(creates.accepted) > LIMIT  # so that the limit was met


def most_in_a_minute(moments: Sequence[float]) -> int:
    """Of ascending `moments`."""
    return max(
        (sum(start <= moment < start + MINUTE for moment in moments) for start in moments),
        default=0,
    )
