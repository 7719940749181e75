"""Run a work directory once on the real Cog runtime, without Docker."""

from __future__ import annotations

import argparse

NAME = "predict"
HELP = "Run a work directory once on the real Cog runtime, without Docker"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `lmtp-replicate predict`."""


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit status."""
    raise NotImplementedError
