"""The scripted engine, a token at a time: tests decide how far it goes."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from tests.scripted_engine import ScriptedEngine, counting


class StepwiseEngine(ScriptedEngine):
    """Makes its tokens only when told to."""

    def __init__(self) -> None:
        super().__init__(self._counted)
        self._permits = threading.Semaphore(0)
        self._asked = 0
        self._asking = threading.Condition()

    @property
    def begun(self) -> int:
        """Number of tokens made so far or being made."""
        return self._asked

    def _counted(self, context: Sequence[int]) -> list[float]:
        with self._asking:
            self._asked += 1
            self._asking.notify_all()
        self._permits.acquire()
        return counting(context)

    def allow(self, tokens: int) -> None:
        """Let the engine make so many more tokens."""
        self._permits.release(tokens)

    def wait_until_made(self, tokens: int, timeout: float = 10) -> None:
        """Wait until so many tokens have been delivered, which is when the next one begins."""
        with self._asking:
            assert self._asking.wait_for(lambda: self._asked > tokens, timeout)

    def close(self) -> None:
        self.allow(10_000)
        super().close()
