"""Run a work directory once on the real Cog runtime, without Docker.

As `cog run` (formerly `cog predict`) does with it: output goes to standard output as it comes,
logs to standard error. The exit status is 0 when the prediction succeeded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import signal
import sys
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from lmtp_replicate.errors import ConfigError, PredictionError
from lmtp_replicate.gateway.cog_events import CogEvent, Completed, Log, Output
from lmtp_replicate.gateway.cog_runtime import CogRuntime
from lmtp_replicate.gateway.input_schema import InputSchema, problem_text
from lmtp_replicate.gateway.work_directory import WorkDirectory

NAME = "predict"
HELP = "Run a work directory once on the real Cog runtime, without Docker"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `lmtp-replicate predict`."""
    parser.add_argument("work", metavar="WORKDIR", type=Path)
    parser.add_argument(
        "-i",
        "--input",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        dest="inputs",
        help="an input of the model; NAME=@FILE takes it from a file; may be repeated",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the prediction; 0 when it succeeded."""
    work = WorkDirectory.read(arguments.work)
    values = _inputs(InputSchema(work.schema), arguments.inputs)
    try:
        asyncio.run(_predict(work, values))
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        return 1
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    return 0


def _inputs(schema: InputSchema, pairs: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"-i {pair}: must be NAME=VALUE or NAME=@FILE")
        if name in values:
            raise ConfigError(f"-i {name}: given twice")
        values[name] = schema.convert(name, text)
    invalid = schema.invalid_fields(values)
    if invalid:
        raise ConfigError(f"the model does not accept this input:\n{problem_text(invalid)}")
    return values


async def _predict(work: WorkDirectory, values: dict[str, Any]) -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    prediction_id = f"local{secrets.token_hex(8)}"
    async with (
        CogRuntime(work) as runtime,
        aclosing(runtime.predict(prediction_id, values)) as events,
    ):
        async for event in events:
            _show(event)


def _show(event: CogEvent) -> None:
    match event:
        case Output(chunk=chunk):
            sys.stdout.write(chunk if isinstance(chunk, str) else json.dumps(chunk) + "\n")
            sys.stdout.flush()
        case Log(text=text):
            sys.stderr.write(text)
        case Completed(status=status, error=error) if status != "succeeded":
            raise PredictionError(f"the prediction {status}: {error}")
