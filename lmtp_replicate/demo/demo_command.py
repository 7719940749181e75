"""Build, start and query a model, all on this machine: what the README's first command does."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

NAME = "demo"
HELP = "Build, start and query a model, all on this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `lmtp-replicate demo`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="a local directory or a Hugging Face id (default: the small model that comes along)",
    )
    parser.add_argument("--review", metavar="TEXT", help="the review to classify")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit status."""
    from lmtp_replicate.demo.demonstration import demonstrate
    from lmtp_replicate.demo.query import REVIEW
    from lmtp_replicate.demo.workspace import Workspace

    if not arguments.verbose:  # the stages say what happens
        logging.getLogger("lmtp_replicate").setLevel(logging.WARNING)
        # It warns of the cold boot, which the demo announces itself.
        logging.getLogger("lmtp_replicate.client.replicate").setLevel(logging.ERROR)
    review = " ".join((arguments.review or REVIEW).split())
    demonstrate(Workspace.of(arguments.model, Path.cwd()), review)
    return 0
