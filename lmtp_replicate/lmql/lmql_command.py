"""Run LMQL's own command line with our client installed."""

from __future__ import annotations

import argparse

NAME = "lmql"
HELP = "Run LMQL's own command line with our client installed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `lmtp-replicate lmql`."""


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit status."""
    raise NotImplementedError
