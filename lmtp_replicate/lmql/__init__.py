"""The plug-in that gives unmodified LMQL our client."""

from __future__ import annotations


def install() -> None:
    """Make LMQL use our client for `replicate:` endpoints. Idempotent; does not import lmql."""
