"""What the image installs, to the exact version."""

from __future__ import annotations

from importlib.resources import files

PYTHON = "3.11"
"""The image's Python: the one the versions below were tested with."""

COG_SDK = "0.23.1"
"""Cog's runtime in the image. Streaming, concurrency and cancelling depend on it. It is set in
cog.yaml: Cog drops `cog` from a requirements file, with a warning."""

TORCH = "2.11.0"
"""The newest that the cog command line (0.22) knows a CUDA image for."""


def pins() -> dict[str, str]:
    """Distribution to version, for all but torch: `scripts/setup` installs the very same."""
    lines = files("lmtp_replicate.building").joinpath("pins.txt").read_text().splitlines()
    entries = (line.partition("==") for line in lines if line and not line.startswith("#"))
    return {name: version for name, _, version in entries}


def requirements(own: str) -> str:
    """The text of requirements.txt; `own` is the requirement for this package itself."""
    pinned = {"torch": TORCH} | pins()
    return "".join(f"{line}\n" for line in [own, *(f"{k}=={v}" for k, v in pinned.items())])
