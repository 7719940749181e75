"""The limit on creates: kept where it is known, learned where it is not, and nobody fails of it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from lmtp_replicate.client import limiter as module
from lmtp_replicate.client.limiter import MOST_UNANSWERED, CreateLimiter
from lmtp_replicate.client.retry import MOST_ATTEMPTS, Failure
from tests.client.clock import run


class Server:
    """Accepts so many creates in any 60 seconds; answers after `seconds`."""

    def __init__(self, limit: int, seconds: float = 0.15) -> None:
        self.limit = limit
        self.seconds = seconds
        self.accepted: list[float] = []
        self.refused: list[float] = []

    async def create(self) -> Failure | None:
        now = asyncio.get_running_loop().time()
        recent = [moment for moment in self.accepted if moment > now - 60]
        is_accepted = len(recent) < self.limit
        (self.accepted if is_accepted else self.refused).append(now)
        await asyncio.sleep(self.seconds)
        if is_accepted:
            return None
        return Failure(429, retry_after=float(int(recent[0] + 60 - now) + 1))


def most_in_a_minute(moments: list[float]) -> int:
    return max(
        (sum(begin <= moment < begin + 60 for moment in moments) for begin in moments), default=0
    )


async def use(limiter: CreateLimiter, server: Server, count: int) -> None:
    async def create() -> None:
        while True:
            turn = await limiter.turn()
            failure = await server.create()
            if failure is None:
                turn.accepted(None)
                return
            assert turn.refused(failure)

    await asyncio.gather(*(create() for _ in range(count)))


@pytest.mark.parametrize("limit", [6, 60, 600])
def test_a_lower_limit_is_learned_and_kept(limit: int) -> None:
    server = Server(limit)
    run(lambda: use(CreateLimiter(), server, 5 * limit))
    assert len(server.accepted) == 5 * limit
    assert most_in_a_minute(server.accepted) <= limit
    assert most_in_a_minute(server.refused) <= 5


def test_the_documented_limit_is_kept_without_being_refused() -> None:
    server = Server(10**6)
    run(lambda: use(CreateLimiter(), server, 1500))
    assert most_in_a_minute(server.accepted) <= module.MOST_CREATES


def test_a_limit_that_was_passing_is_forgotten() -> None:
    limiter, server = CreateLimiter(), Server(6)

    async def main() -> None:
        await use(limiter, server, 12)
        assert limiter.limit < module.MOST_CREATES
        server.limit = 10**6
        await use(limiter, server, 5000)
        assert limiter.limit == module.MOST_CREATES

    run(main)


def test_waiting_is_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(10)
    with caplog.at_level(logging.WARNING):
        run(lambda: use(CreateLimiter(), server, 25))
    assert 1 <= len(caplog.messages) <= 3
    assert "predictions wait" in caplog.messages[0]


def test_endless_refusals_end() -> None:
    async def main() -> None:
        limiter, refused = CreateLimiter(), 0
        while (await limiter.turn()).refused(Failure(429, retry_after=3.0)):
            refused += 1
        assert refused == MOST_ATTEMPTS - 1

    run(main)


def test_answers_that_tell_how_many_are_left_allow_as_many_at_a_time() -> None:
    async def main() -> None:
        limiter = CreateLimiter()
        (await limiter.turn()).accepted(599)
        turns = [await limiter.turn() for _ in range(20)]
        assert not limiter.is_tight
        for turn in turns:
            turn.end()
        (await limiter.turn()).refused(Failure(429, retry_after=1.0))
        await limiter.turn()
        waiting = asyncio.ensure_future(limiter.turn())  # one tries first
        await asyncio.sleep(100)
        assert limiter.is_tight
        assert not waiting.done()
        waiting.cancel()

    run(main)


def test_how_many_are_left_is_counted_from_the_create_that_was_told() -> None:
    """Its answer was waited for, and others were accepted meanwhile."""

    async def main() -> None:
        limiter = CreateLimiter()
        waited = await limiter.turn()
        for left in range(29, -1, -1):
            (await limiter.turn()).accepted(left)
        waited.accepted(30)
        for _ in range(MOST_UNANSWERED - 1):
            assert not limiter.is_tight
            await limiter.turn()
        assert limiter.is_tight

    run(main)
