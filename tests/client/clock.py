"""Time that passes only while everybody waits, and then at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class Clock:
    """Replaces a loop's clock."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now = 1000.0
        self._select = loop._selector.select  # type: ignore[attr-defined]
        loop.time = lambda: self.now  # type: ignore[method-assign]
        loop._selector.select = self.select  # type: ignore[attr-defined]

    def select(self, timeout: float | None) -> object:
        if timeout:
            self.now += timeout
        return self._select(0 if timeout else timeout)


def run(main: Callable[[], Awaitable[object]]) -> None:
    """`main` in a loop with such a clock."""

    async def with_clock() -> None:
        Clock(asyncio.get_running_loop())
        await main()

    asyncio.run(with_clock())
