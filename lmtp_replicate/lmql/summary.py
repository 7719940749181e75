"""What a query has cost, on standard error, when LMTP_REPLICATE_SUMMARY is set."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final

from lmtp_replicate.client import Client, Stats

VARIABLE: Final = "LMTP_REPLICATE_SUMMARY"


def tell_at_end(client: Client) -> None:
    """The query of `client` is over: say what it has cost, if that is wanted, as soon as nothing of
    it runs any more on the server's side, since until then its costs grow."""
    if os.environ.get(VARIABLE, "0") not in ("", "0"):
        client.when_settled(_show)


def _show(stats: Stats) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody reads, or the process is at its end
        if sys.stderr is not None:
            sys.stderr.write(f"lmtp-replicate: this query: {stats}\n")
