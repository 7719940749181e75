"""Turn config.toml into one Cog work directory per model."""

from __future__ import annotations

import argparse

NAME = "build"
HELP = "Turn config.toml into one Cog work directory per model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `lmtp-replicate build`."""


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit status."""
    raise NotImplementedError
