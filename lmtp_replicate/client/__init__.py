"""The client side of LMTP: `connect(endpoint)` for `replicate:` and `ws://` endpoints."""

from __future__ import annotations


def connect(endpoint: str) -> object:
    """A client for `endpoint` (seam; the client helper replaces this)."""
    raise NotImplementedError
