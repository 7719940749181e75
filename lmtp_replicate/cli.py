"""The `lmtp-replicate` command: one sub-command per job, each defined where its work is done.

A command module has `NAME`, `HELP`, `add_arguments(parser)` and `run(arguments) -> int`. It must
be cheap to import: heavy imports belong inside `run`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from types import ModuleType

from lmtp_replicate import __version__
from lmtp_replicate.building import build_command
from lmtp_replicate.demo import demo_command
from lmtp_replicate.errors import LmtpReplicateError
from lmtp_replicate.gateway import gateway_command, predict_command
from lmtp_replicate.lmql import lmql_command
from lmtp_replicate.serving import serve_command

COMMANDS: tuple[ModuleType, ...] = (
    demo_command,
    serve_command,
    build_command,
    predict_command,
    gateway_command,
    lmql_command,
)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="lmtp-replicate",
        description="Run LMQL queries on open models hosted on Replicate, or on this machine.",
    )
    top.add_argument("--version", action="version", version=f"lmtp-replicate {__version__}")
    top.add_argument("-v", "--verbose", action="store_true", help="log what happens inside")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = commands.add_parser(command.NAME, help=command.HELP, description=command.__doc__)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; expected errors are one line on stderr and exit status 1."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if arguments.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        return int(arguments.run(arguments))
    except LmtpReplicateError as error:
        sys.stderr.write(f"lmtp-replicate: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
