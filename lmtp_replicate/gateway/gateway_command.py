"""Serve Replicate's HTTP API for local work directories.

WORK is a work directory made by `lmtp-replicate build`, or a folder of them. Each becomes a model
OWNER/NAME and a deployment of the same name. Prints the environment variables that Replicate's
clients, and LMQL with lmtp_replicate, need to use it instead of replicate.com.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import signal
import sys
from pathlib import Path

from lmtp_replicate.gateway.cog_runtime import RuntimeSettings
from lmtp_replicate.gateway.gateway import Gateway

NAME = "gateway"
HELP = "Serve Replicate's HTTP API for local work directories"

DEFAULT_PORT = 8393
"""The port of `cog serve`."""
IDLE_SECONDS = 900.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `lmtp-replicate gateway`."""
    parser.add_argument("work", metavar="WORK", nargs="+", type=Path)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine only)"
    )
    parser.add_argument(
        "--port",
        type=int,
        default=DEFAULT_PORT,
        help=f"default: {DEFAULT_PORT}; 0 takes a free one",
    )
    parser.add_argument(
        "--token", help="API token that clients must send (default: a new random one each time)"
    )
    parser.add_argument("--owner", default="local", help="owner of the models (default: local)")
    parser.add_argument(
        "--idle",
        metavar="SECONDS",
        type=float,
        default=IDLE_SECONDS,
        help=f"stop a model's runtime after that long without work (default: {IDLE_SECONDS:g})",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGINT, SIGTERM or SIGHUP; 0 then."""
    asyncio.run(_serve(arguments))
    return 0


async def _serve(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    async with Gateway(
        arguments.work,
        host=arguments.host,
        port=arguments.port,
        token=arguments.token,
        owner=arguments.owner,
        runtime=RuntimeSettings(idle=arguments.idle),
    ) as gateway:
        sys.stderr.write(_welcome(gateway))
        sys.stderr.flush()
        await stop.wait()


def _welcome(gateway: Gateway) -> str:
    models = "".join(f"  replicate:{model}\n" for model in gateway.models)
    return (
        f"Replicate's API is at {gateway.url}; endpoints for LMQL:\n{models}"
        "Set this where the clients run:\n"
        f"  export REPLICATE_BASE_URL={shlex.quote(gateway.url)}\n"
        f"  export REPLICATE_API_TOKEN={shlex.quote(gateway.token)}\n"
    )
