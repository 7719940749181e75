"""The plug-in that gives unmodified LMQL our client."""

from __future__ import annotations

from lmtp_replicate.lmql.plug import install

__all__ = ["install"]
