"""A real gateway in a thread with its own loop, so that queries may be synchronous or not."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from lmtp_replicate.client.hub import process_hub
from lmtp_replicate.gateway import Gateway

TOKEN = "token-of-the-gateway"


class GatewayThread:
    """A running gateway over a work directory, or a folder of them, and what it says of itself."""

    def __init__(self, work: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.work = work
        self.gateway = Gateway([work], token=TOKEN)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def get(self, path: str) -> Any:
        """What the gateway's API says at `path`."""
        request = urllib.request.Request(
            f"{self.gateway.url}/v1{path}", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def lead_here(self, environment: pytest.MonkeyPatch) -> None:
        """Have clients use this gateway."""
        environment.setenv("REPLICATE_BASE_URL", self.gateway.url)
        environment.setenv("REPLICATE_API_TOKEN", TOKEN)

    def predictions(self) -> set[str]:
        """The ids of the newest predictions, at most 100."""
        return {prediction["id"] for prediction in self.get("/predictions")["results"]}

    def version(self, model: str) -> str:
        """The id of the latest version of `model`."""
        return str(self.get(f"/models/local/{model}")["latest_version"]["id"])

    def wait_until_quiet(self) -> None:
        """Wait until no prediction runs: neither for the gateway nor for the client."""
        hub = process_hub()
        self._wait(
            lambda: (
                not hub.running
                and all(p.get("completed_at") for p in self.get("/predictions")["results"])
            )
        )

    def _wait(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not true():
            assert time.monotonic() < deadline, self.get("/predictions")
            time.sleep(0.02)

    def __enter__(self) -> GatewayThread:
        self._thread.start()
        self.run(self.gateway.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(10)
            self.loop.close()

    def stop(self) -> None:
        """Stop the gateway; again is no error."""
        self.run(self.gateway.__aexit__(None, None, None))
