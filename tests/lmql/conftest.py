"""The real gateway and Cog runtime with the alphabet model, in a thread with its own loop, so that
queries may be synchronous or not."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmtp_replicate.building.schema import openapi_schema
from lmtp_replicate.client.hub import close_process_hub, process_hub
from lmtp_replicate.gateway import Gateway
from tests.client import replicate_double
from tests.client.replicate_double import ReplicateDouble
from tests.lmql.alphabet import AlphabetEngine, save_tokenizer

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "lmtp_replicate" / "building" / "templates" / "run.py"
TOKEN = "token-of-the-gateway"


def work_directory(folder: Path) -> Path:
    """As `./build` makes it, but with the alphabet model."""
    text = TEMPLATE.read_text()
    load = "CogRunner.load(Path(__file__).resolve().parent)"
    assert load in text
    text = text.replace(load, "runner()").replace(
        "from lmtp_replicate.serving.cog_runner import CogRunner",
        "from tests.lmql.alphabet import runner",
    )
    (folder / ".cog").mkdir(parents=True)
    (folder / "run.py").write_text(text)
    (folder / "cog.yaml").write_text("run: run.py:Runner\n")
    (folder / ".cog" / "openapi_schema.json").write_text(json.dumps(openapi_schema(text)))
    return folder


class GatewayThread:
    """A running gateway; `creates` counts what was asked of it."""

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

    def predictions(self) -> set[str]:
        """The ids of the newest predictions, at most 100."""
        return {prediction["id"] for prediction in self.get("/predictions")["results"]}

    def version(self) -> str:
        return str(self.get("/models/local/alphabet")["latest_version"]["id"])

    def wait_for_output(self) -> None:
        """Wait until a prediction has produced a token."""
        self._wait(
            lambda: any(
                "logprob" in "".join(p.get("output") or ())
                for p in self.get("/predictions")["results"]
            )
        )

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


@pytest.fixture(scope="session")
def gateway_thread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayThread]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        work = work_directory(tmp_path_factory.mktemp("work") / "alphabet")
        with GatewayThread(work) as running:
            yield running
        close_process_hub()


@pytest.fixture
def gateway(
    gateway_thread: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> Iterator[GatewayThread]:
    monkeypatch.setenv("REPLICATE_BASE_URL", gateway_thread.gateway.url)
    monkeypatch.setenv("REPLICATE_API_TOKEN", TOKEN)
    yield gateway_thread


@pytest.fixture(scope="session")
def tokenizer() -> str:
    """The path of the model's tokenizer."""
    return str(save_tokenizer(Path(os.environ["HOME"])))


@pytest.fixture
def replicate(monkeypatch: pytest.MonkeyPatch) -> Iterator[ReplicateDouble]:
    """A small Replicate in this process, with the alphabet model."""
    with ReplicateDouble(AlphabetEngine()).running() as double:
        monkeypatch.setenv("REPLICATE_BASE_URL", double.url)
        monkeypatch.setenv("REPLICATE_API_TOKEN", replicate_double.TOKEN)
        yield double
        close_process_hub()
