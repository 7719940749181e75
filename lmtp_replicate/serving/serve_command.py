"""Serve a model over LMTP on a websocket."""

from __future__ import annotations

import argparse

NAME = "serve"
HELP = "Serve a model over LMTP on a websocket"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `lmtp-replicate serve`."""


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit status."""
    raise NotImplementedError
