"""The client side of LMTP: `connect(endpoint)` for `replicate:` and `ws://` endpoints."""

from __future__ import annotations

from lmtp_replicate.client.client import Client, connect
from lmtp_replicate.client.stats import Stats, stats
from lmtp_replicate.client.token_stream import TokenStream

__all__ = ["Client", "Stats", "TokenStream", "connect", "stats"]
