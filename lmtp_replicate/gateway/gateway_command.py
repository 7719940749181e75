"""Serve Replicate's HTTP API for local work directories."""

from __future__ import annotations

import argparse

NAME = "gateway"
HELP = "Serve Replicate's HTTP API for local work directories"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `lmtp-replicate gateway`."""


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit status."""
    raise NotImplementedError
