"""Tells the user that models are starting up, while predictions wait for them.

On a terminal it is one line on stderr that counts the seconds, elsewhere a line of the log, again
at growing intervals. All models and predictions of the process share it. Who silences this logger
silences both.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import sys
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

log = logging.getLogger(__name__)
FIRST_REMINDER: Final = 15.0
"""Seconds from the first line of the log to the second; each later one takes twice as long."""
TICK: Final = 1.0
_ERASE = "\r\x1b[K"


@dataclass
class _Boot:
    """A model that starts; `waiting` are the predictions."""

    began: float
    patience: float
    next_reminder: float
    waiting: set[Hashable]


class BootNotice:
    """One hub's. Hub's thread only."""

    def __init__(self) -> None:
        self._boots: dict[str, _Boot] = {}
        self._ticking: asyncio.Task[None] | None = None

    def starting(self, model: str, prediction: Hashable, *, since: float, patience: float) -> None:
        """`prediction` of `model` has waited since then (loop's time), and will for `patience`
        seconds. May be told again."""
        if not log.isEnabledFor(logging.WARNING):
            return
        boot = self._boots.setdefault(model, _Boot(since, patience, since, set()))
        boot.waiting.add(prediction)
        boot.patience = max(boot.patience, patience)
        if self._ticking is None:
            self._ticking = asyncio.ensure_future(self._tick())

    def over(self, model: str, prediction: Hashable) -> None:
        """It waits no longer. Also for one that never did."""
        boot = self._boots.get(model)
        if boot is None or prediction not in boot.waiting:
            return
        boot.waiting.remove(prediction)
        if not boot.waiting:
            del self._boots[model]
        if not self._boots and self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None

    async def _tick(self) -> None:
        shown = False
        try:
            while True:
                if _is_terminal():
                    shown = True
                    _write(_ERASE + self._line()[: shutil.get_terminal_size().columns - 1])
                else:
                    self._remind()
                await asyncio.sleep(TICK)
        finally:
            if shown:
                _write(_ERASE)

    def _line(self) -> str:
        now = asyncio.get_running_loop().time()
        models = ", ".join(
            f"{model} ({now - boot.began:.0f} s)" for model, boot in self._boots.items()
        )
        return f"starting up on Replicate: {models}; a cold model takes seconds to minutes"

    def _remind(self) -> None:
        now = asyncio.get_running_loop().time()
        for model, boot in self._boots.items():
            if now >= boot.next_reminder:
                waited = now - boot.began
                boot.next_reminder = now + max(FIRST_REMINDER, waited)
                log.warning(
                    "%s is starting up on Replicate, for %.0f s now; a cold model takes seconds to "
                    "minutes. Waiting for up to %.0f s (the endpoint's boot_timeout).",
                    model,
                    waited,
                    boot.patience,
                )


def _is_terminal() -> bool:
    with contextlib.suppress(AttributeError, ValueError):  # there is none, or it is closed
        return sys.stderr.isatty()
    return False


def _write(text: str) -> None:
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()
