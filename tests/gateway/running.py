"""A gateway on its own thread, so that blocking clients can be used as their users do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import replicate

from lmtp_replicate.gateway import Gateway
from lmtp_replicate.gateway.cog_runtime import RuntimeSettings

TOKEN = "secret-of-the-tests"
QUICK = RuntimeSettings(grace=0.3)


@dataclass
class Running:
    """A gateway that serves `toy` among others."""

    gateway: Gateway
    http: httpx.Client

    @property
    def replicate(self) -> replicate.Client:
        return replicate.Client(api_token=TOKEN, base_url=self.gateway.url)

    def version(self, model: str = "toy") -> str:
        answer = self.http.get(f"/v1/models/local/{model}").raise_for_status()
        version: str = answer.json()["latest_version"]["id"]
        return version

    def create(
        self,
        inputs: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
        model: str = "toy",
    ) -> dict[str, Any]:
        answer = self.http.post(
            f"/v1/deployments/local/{model}/predictions",
            json={"input": inputs},
            headers=dict(headers or {}),
        )
        assert answer.status_code == 201, answer.text
        created: dict[str, Any] = answer.json()
        return created

    def get(self, prediction: Mapping[str, Any]) -> dict[str, Any]:
        shown: dict[str, Any] = self.http.get(prediction["urls"]["get"]).json()
        return shown

    def ended(self, prediction: Mapping[str, Any]) -> dict[str, Any]:
        """The prediction once its stream has ended."""
        list(self.events(prediction))
        return self.get(prediction)

    def events(
        self, prediction: Mapping[str, Any], last_event_id: str | None = None
    ) -> Iterator[dict[str, str]]:
        """The stream as a reader sees it that follows the rules to the letter."""
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        with self.http.stream("GET", prediction["urls"]["stream"], headers=headers) as answer:
            assert answer.status_code == 200
            yield from parsed(answer.iter_bytes())


def parsed(pieces: Iterator[bytes]) -> Iterator[dict[str, str]]:
    """Events with the fields event, id and data; comments as {"comment": ...}."""
    rest = b""
    for piece in pieces:
        *blocks, rest = (rest + piece).split(b"\n\n")
        for block in blocks:
            lines = block.decode("utf-8", "surrogatepass").split("\n")
            if lines[0].startswith(":"):
                yield {"comment": lines[0]}
                continue
            assert [line.partition(": ")[0] for line in lines[:2]] == ["event", "id"]
            data = [line.removeprefix("data: ") for line in lines[2:]]
            event, event_id = (line.partition(": ")[2] for line in lines[:2])
            yield {"event": event, "id": event_id, "data": "\n".join(data)}
    assert rest == b""


@contextmanager
def running(paths: Sequence[Path], **settings: Any) -> Iterator[Running]:
    """Serve `paths` and prove afterwards that no process is left."""
    settings.setdefault("runtime", QUICK)
    ready: Future[Gateway] = Future()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        try:
            async with Gateway(paths, token=TOKEN, **settings) as gateway:
                ready.set_result(gateway)
                await stop.wait()
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:  # cancels what is left
            runner.run(serve())

    before = set(psutil.Process().children(recursive=True))
    thread = threading.Thread(target=run, name="gateway")
    thread.start()
    try:
        gateway = ready.result(30)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=gateway.url, headers=headers, timeout=30) as http:
            yield Running(gateway, http)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
    assert not thread.is_alive()
    left = [p for p in psutil.Process().children(recursive=True) if p not in before]
    assert left == []
