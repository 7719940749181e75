"""LMQL exactly as released, in a process of its own with none of our code in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.gateway_thread import TOKEN

SCRIPT = Path(__file__).with_name("upstream_query.py")
PATIENCE = 120
"""Seconds after which a query that hangs fails the test."""


def run_upstream(query: str, *gateway: str) -> subprocess.CompletedProcess[str]:
    """Run `query`; the last line of its output is the variables as JSON. `gateway` is where
    requests to Replicate are led."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), *gateway],
        input=query,
        env=os.environ | {"REPLICATE_API_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
