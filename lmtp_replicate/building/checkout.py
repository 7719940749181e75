"""The checkout this package runs from, if it runs from one."""

from __future__ import annotations

import tomllib
from pathlib import Path


def checkout_root() -> Path | None:
    """The root of this project's source tree, or None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return root if project.get("project", {}).get("name") == "lmtp-replicate" else None
