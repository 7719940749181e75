"""A file of JSON lines that several processes may write to at once."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)
VARIABLE = "LMTP_REPLICATE_TRACE"


class TraceFile:
    """Appends whole lines. A file that cannot be written is warned of once, and then left alone:
    queries go on. One writer per hub, hub's thread only."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.run = os.urandom(4).hex()
        """Tells this writer's lines from others' in the same file."""
        self._began = time.monotonic()
        self._file: int | None = None
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            self._give_up(error)

    @property
    def seconds(self) -> float:
        """Since this writer began."""
        return time.monotonic() - self._began

    def write(self, event: str, facts: Mapping[str, Any]) -> None:
        """One line: what happened, when, and `facts`."""
        if self._file is None:
            return
        line = {"event": event, "run": self.run, "t": round(self.seconds, 6), **facts}
        data = (json.dumps(line, separators=(",", ":")) + "\n").encode()
        try:
            # One call for all of it: the system then lets no other process's line come between.
            if os.write(self._file, data) < len(data):
                raise OSError("the disk may be full")
        except OSError as error:
            self.close()
            self._give_up(error)

    def close(self) -> None:
        """Write no more."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _give_up(self, error: OSError) -> None:
        log.warning("no trace is written to %s, which %s names: %s", self._path, VARIABLE, error)
