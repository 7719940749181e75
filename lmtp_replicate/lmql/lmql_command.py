"""Run LMQL's own command line with our client installed: lmtp-replicate lmql run FILE ..."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from lmtp_replicate.errors import ConfigError

NAME = "lmql"
HELP = "Run LMQL's own command line with our client installed"
AUTOLOAD: Final = str(Path(__file__).parent / "autoload")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `lmtp-replicate lmql`."""
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="as for the lmql command")


def run(arguments: argparse.Namespace) -> int:
    """Run LMQL's command; its exit status."""
    try:
        from lmql.cli import main
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is missing; install LMQL with: pip install 'lmtp-replicate[lmql]'"
        ) from error
    # `lmql chat` and the playground run queries in processes of their own.
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = AUTOLOAD + (os.pathsep + path if path else "")
    sys.argv = ["lmql", *arguments.arguments]
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0
