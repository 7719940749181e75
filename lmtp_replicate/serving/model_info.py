"""The answer to MODEL_INFO."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

from lmtp_replicate import __version__
from lmtp_replicate.engine.interface import ModelCard
from lmtp_replicate.protocol.limits import LIMITS
from lmtp_replicate.protocol.messages import EXTENSIONS


def model_info(card: ModelCard) -> dict[str, Any]:
    """The model's card and what this server accepts; JSON-able. Keys: those of `ModelCard`,
    `extensions` (names), `limits` (name to number) and `versions` (package to version)."""
    ours = {"lmtp-replicate": __version__, "python": platform.python_version()}
    return {
        **asdict(card),
        "eos_token_ids": list(card.eos_token_ids),
        "extensions": list(EXTENSIONS),
        "limits": LIMITS.announced(),
        "versions": {**card.versions, **ours},
    }
