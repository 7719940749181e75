"""Build, start and query a model, all on this machine."""

from __future__ import annotations

import argparse

NAME = "demo"
HELP = "Build, start and query a model, all on this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `lmtp-replicate demo`."""


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit status."""
    raise NotImplementedError
