"""Serve a model over LMTP on a websocket, for `lmql.model("...", endpoint="localhost:8080")`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmtp_replicate.engine.interface import Engine

NAME = "serve"
HELP = "Serve a model over LMTP on a websocket"
TOKEN_VARIABLE = "LMTP_REPLICATE_TOKEN"  # noqa: S105 - the variable's name is no secret

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `lmtp-replicate serve`."""
    parser.add_argument("model", metavar="MODEL", help="a local directory or a Hugging Face id")
    parser.add_argument("--host", default="localhost", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on (%(default)s)")
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="of weights and arithmetic (%(default)s: by checkpoint and device)",
    )
    parser.add_argument("--quantize", choices=["4bit", "8bit"], help="with bitsandbytes")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    parser.add_argument(
        "--decode-graphs",
        action="store_true",
        help="on one GPU, replay recorded decode steps (CUDA graphs); not yet measured on a GPU",
    )
    parser.add_argument(
        "--token",
        default=os.environ.get(TOKEN_VARIABLE),
        help="what clients must send as `Authorization: Bearer TOKEN`; other users of this machine "
        f"can see an option in the process list, so rather set {TOKEN_VARIABLE}",
    )


def run(arguments: argparse.Namespace) -> int:
    """Load the model, then serve it until SIGINT or SIGTERM; the exit status."""
    from lmtp_replicate.engine.options import LoadOptions
    from lmtp_replicate.engine.torch_engine import open_engine

    options = LoadOptions.from_model_args(
        {
            "dtype": arguments.dtype,
            "quantize": arguments.quantize,
            "device": arguments.device,
            "decode_graphs": arguments.decode_graphs,
        }
    )
    engine = open_engine(arguments.model, options)
    try:
        asyncio.run(serve(engine, arguments.host, arguments.port, arguments.token or None))
    finally:
        engine.close()
    return 0


async def serve(engine: Engine, host: str, port: int, token: str | None) -> None:
    """Serve `engine` until the process is asked to stop."""
    from lmtp_replicate.engine.heap import keep_objects
    from lmtp_replicate.serving.websocket_server import WebSocketServer

    keep_objects()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    model = engine.info().model
    async with WebSocketServer(engine, host=host, port=port, token=token) as server:
        endpoint = f"{host}:{server.port}"
        log.info("listening on ws://%s", endpoint)
        log.info('in LMQL: lmql.model("%s", endpoint="%s")', model, endpoint)
        await stop.wait()
        log.info("stopping")
