"""Progress on stderr: one line for each stage, with its seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stage(what: str) -> Iterator[None]:
    """Say that `what` begins, and how long it took, also when it fails."""
    started = time.monotonic()
    sys.stderr.write(f"{what} ... ")
    sys.stderr.flush()
    outcome = "failed after "
    try:
        yield
        outcome = ""
    finally:
        sys.stderr.write(f"{outcome}{time.monotonic() - started:.1f} s\n")
