"""The whole path on this machine: build, gateway, Cog runtime, LMQL query, answer, cost."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lmtp_replicate.demo.bars import bars
from lmtp_replicate.demo.cost import Cost, count_tokens, list_predictions
from lmtp_replicate.demo.progress import stage
from lmtp_replicate.demo.query import Answer, ask
from lmtp_replicate.demo.workspace import NAME, Workspace
from lmtp_replicate.errors import LmtpReplicateError, StreamError

ENDPOINT = f"replicate:local/{NAME}"
STOPPED = 128 + signal.SIGTERM
"""The exit status of a process that SIGTERM ended, as shells have it."""


def demonstrate(workspace: Workspace, review: str) -> None:
    """Build the model, run the query on `review`, print answer and cost, stop everything.

    Changes this process's environment and signal handlers. Raises LmtpReplicateError, and
    SystemExit on SIGTERM, as KeyboardInterrupt on SIGINT.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    workspace.prepare()
    token = _set_environment(workspace)
    with stage(f"building {workspace.source}"):
        directory = workspace.build()
    with stage("loading LMQL"):
        # Now, because imports would hold up the event loop that the gateway needs.
        import lmql  # noqa: F401
        from transformers import AutoTokenizer  # noqa: F401 - LMQL imports it late
    tokenizer = workspace.tokenizer(directory)
    try:
        asyncio.run(_Demonstration(directory, tokenizer, review, token).run())
    except asyncio.CancelledError:
        sys.exit(STOPPED)


def _set_environment(workspace: Workspace) -> str:
    """Set what LMQL, our plug-in and the Cog runtime read from the environment; the API token."""
    # LMQL keeps pickles below HOME; the Hub's own cache and compiled kernels stay where they are.
    cache = Path("~/.cache").expanduser()
    os.environ.setdefault("HF_HOME", str(cache / "huggingface"))
    os.environ.setdefault("XDG_CACHE_HOME", str(cache))
    os.environ["HOME"] = str(workspace.home)
    if workspace.is_offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    # It is only for the gateway, which lives as long as this process.
    os.environ["REPLICATE_API_TOKEN"] = token = secrets.token_hex(20)
    return token


@dataclass(frozen=True)
class _Demonstration:
    directory: Path
    tokenizer: Path
    review: str
    token: str

    async def run(self) -> None:
        from lmtp_replicate.client.hub import close_process_hub
        from lmtp_replicate.gateway import Gateway

        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
        async with Gateway([self.directory], token=self.token, owner="local") as gateway:
            os.environ["REPLICATE_BASE_URL"] = gateway.url
            try:
                with stage("starting the Cog runtime"):
                    await self._boot()
                await self._query(gateway.url)
            finally:
                # While the gateway can still hear which predictions nobody waits for.
                await asyncio.to_thread(close_process_hub)

    async def _query(self, api: str) -> None:
        """Ask, answer, and what it cost."""
        before = len(await list_predictions(api, self.token))
        started = time.monotonic()
        answer = await self._ask()
        seconds = time.monotonic() - started
        made = (await list_predictions(api, self.token))[: -before or None]
        tokens = count_tokens(prediction["output"] for prediction in made)
        _write(f"\n{bars(answer.distribution)}\n")
        cost = Cost(len(made), tokens, seconds)
        _write(f"\nClassification: {answer.classification}\nCost: {cost}\n")

    async def _boot(self) -> None:
        """The gateway starts the runtime, a cold boot as on Replicate, for the first prediction."""
        from lmtp_replicate.client import boot_notice, connect

        # The line that says so is being written: see `stage`.
        boot_notice.log.setLevel(logging.ERROR)
        async with connect(ENDPOINT) as client:
            await client.model_info()

    async def _ask(self) -> Answer:
        """Run the query, with the analysis on stdout as it is written."""
        _write(f"\nReview: {self.review}\n\nAnalysis:")
        try:
            return await ask(self.review, self.tokenizer, _write)
        except LmtpReplicateError:
            raise
        except Exception as error:  # LMQL raises anything, from AssertionError to its own
            raise StreamError(f"the query failed: {error}") from error
        finally:
            _write("\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
