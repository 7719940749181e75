"""A small Replicate with a real session and engine behind it, whose wire can be spoiled at will.

The gateway's tests and those of tests/lmql use the real gateway; this one is for what no server
does on purpose: chunk borders at every byte, refusals, lost answers, repeated events.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import web

from lmtp_replicate.protocol.codecs import decode_batch, encode_lines
from lmtp_replicate.protocol.messages import Dialect, Item, is_last
from lmtp_replicate.serving.session import Session
from tests.scripted_engine import ScriptedEngine

TOKEN = "r8_secret_of_the_tests"
VERSION = "5" * 64
PREDICT_TIME = 1.5
"""Seconds that every prediction has run, by its metrics."""
EXTENDED_SCHEMA = {
    "components": {
        "schemas": {
            "Input": {"properties": {"encoding": {"allOf": [{"$ref": "#/x/y/encoding"}]}}},
            "encoding": {"enum": ["lmtp", "lmtp-extended"]},
        }
    }
}
T = TypeVar("T")


@dataclass
class Faults:
    """What goes wrong; all may be changed while the server runs."""

    refusals: deque[tuple[int, dict[str, str], str]] = field(default_factory=deque)
    """Answers (status, headers, body) to the next creates, instead of creating."""
    refuse: threading.Event = field(default_factory=threading.Event)
    """Until it is set, refusals are held back; it is, unless a test clears it."""
    lose_answers: int = 0
    """So many creates are accepted, and their connection then breaks."""
    bytes_per_write: int | None = None
    end_stream_after: int | None = None
    """Every connection to a stream ends after that many events, without `done`."""
    replay_all: bool = False
    without_stream: bool = False
    stream_status: int = 200
    lose_events: bool = False
    """Streams bring no output, only `done`."""
    ignore_wait: bool = False
    """`Prefer: wait` is not granted."""
    hold: float | None = None
    """Seconds for which creates that are waited for are held, instead of what was asked for."""
    always_processing: bool = False
    """Creates that were waited for hold all output and say `processing`, as recorded."""
    failure: str | None = None
    """Predictions fail with it after their first output."""


class Prediction:
    """One prediction; lives on the server's loop."""

    def __init__(self, number: int, body: dict[str, Any], version: str) -> None:
        self.id = f"prediction{number}"
        self.version = version
        self.input: dict[str, str] = body["input"]
        self.body = body
        self.status = "starting"
        self.error: str | None = None
        self.output: list[str] = []
        self.events: list[tuple[str, str]] = []
        self.changed = asyncio.Condition()
        self.session: Session | None = None
        self.missing = 0

    async def event(self, position: int) -> tuple[str, str]:
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.events) > position)
        return self.events[position]

    async def add(self, kind: str, data: str) -> None:
        async with self.changed:
            self.events.append((kind, data))
            self.changed.notify_all()


class ReplicateDouble:
    """See the module. Runs in its own thread; `url` is the base URL without /v1."""

    def __init__(self, engine: ScriptedEngine, *, schema: Any = EXTENDED_SCHEMA) -> None:
        self.engine = engine
        self.schema = schema
        self.deployed = VERSION
        """What the deployment runs."""
        self.faults = Faults()
        self.faults.refuse.set()
        self._booted = asyncio.Event()
        self._booted.set()
        self.predictions: list[Prediction] = []
        self.requests: list[str] = []
        self.cancelled: list[str] = []
        self.prefers: list[str | None] = []
        """The `Prefer` header of each create."""
        self.last_event_ids: list[str | None] = []
        self.authorizations: list[str | None] = []
        self.url = ""
        self.change = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def wait_for(self, true: Callable[[], bool]) -> None:
        """Wait until `true()`, which is looked at after every request and every cancel."""
        with self.change:
            assert self.change.wait_for(true, timeout=20), (self.requests, self.cancelled)

    @property
    def live(self) -> list[str]:
        """Predictions that have not ended."""
        return [p.id for p in self.predictions if p.status in ("starting", "processing")]

    @property
    def ops(self) -> list[list[str]]:
        """The commands of each prediction."""
        return [[op[0] for op in json.loads(p.input["ops_batch_json"])] for p in self.predictions]

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def shut_down(self) -> None:
        """The model is cold: predictions stay `starting` until `boot`."""
        self._loop.call_soon_threadsafe(self._booted.clear)

    def boot(self) -> None:
        self._loop.call_soon_threadsafe(self._booted.set)

    @contextmanager
    def running(self) -> Iterator[ReplicateDouble]:
        self._thread.start()
        runner = self.run(self._start())
        try:
            yield self
        finally:
            self.boot()
            for prediction in self.predictions:
                if prediction.session is not None:
                    prediction.session.close()
            self.run(runner.cleanup())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()
            self.engine.close()

    async def _start(self) -> web.AppRunner:
        app = web.Application(middlewares=[self._note], client_max_size=2**26)
        app.router.add_get("/v1/models/{owner}/{name}", self._model)
        app.router.add_get("/v1/models/{owner}/{name}/versions/{version}", self._version)
        app.router.add_get("/v1/deployments/{owner}/{name}", self._deployment)
        for path in ("", "/models/{owner}/{name}", "/deployments/{owner}/{name}"):
            app.router.add_post(f"/v1{path}/predictions", self._create)
        app.router.add_get("/v1/predictions/{id}", self._get)
        app.router.add_post("/v1/predictions/{id}/cancel", self._cancel)
        app.router.add_get("/streams/{id}", self._stream)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    @web.middleware
    async def _note(self, request: web.Request, handler: Any) -> web.StreamResponse:
        path = request.path.removeprefix("/v1")
        with self.change:
            self.requests.append(f"{request.method} {path}")
            self.change.notify_all()
        self.authorizations.append(request.headers.get("Authorization"))
        if request.path.startswith("/v1") and self.authorizations[-1] != f"Bearer {TOKEN}":
            return web.json_response({"title": "Unauthenticated", "detail": "no"}, status=401)
        response: web.StreamResponse = await handler(request)
        return response

    async def _model(self, request: web.Request) -> web.Response:
        match request.match_info["name"]:
            case "official":
                return web.json_response({"latest_version": None})
            case "model":
                version = {"id": VERSION, "openapi_schema": self.schema}
                return web.json_response({"latest_version": version})
        return self._missing()

    async def _version(self, request: web.Request) -> web.Response:
        if request.match_info["version"] != VERSION:
            return self._missing()
        return web.json_response({"id": VERSION, "openapi_schema": self.schema})

    async def _deployment(self, request: web.Request) -> web.Response:
        if request.match_info["name"] != "prod":
            return self._missing()
        release = {"model": "org/model", "version": VERSION}
        return web.json_response({"current_release": release})

    def _missing(self) -> web.Response:
        detail = "The requested resource could not be found."
        return web.json_response({"detail": detail, "status": 404}, status=404)

    async def _create(self, request: web.Request) -> web.StreamResponse:
        if self.faults.refusals:
            status, headers, text = self.faults.refusals.popleft()
            await asyncio.to_thread(self.faults.refuse.wait, 20)
            return web.Response(status=status, headers=headers, text=text)
        body = await request.json()
        version = body.get("version", self.deployed)
        prediction = Prediction(len(self.predictions), body, version)
        prediction.task = asyncio.create_task(self._predict(prediction))  # type: ignore[attr-defined]
        with self.change:
            self.predictions.append(prediction)
            self.change.notify_all()
        if self.faults.lose_answers:
            self.faults.lose_answers -= 1
            assert request.transport is not None
            request.transport.abort()
        prefer = request.headers.get("Prefer")
        self.prefers.append(prefer)
        if prefer is not None and not self.faults.ignore_wait:
            asked = float(prefer.removeprefix("wait="))
            return await self._waited(prediction, self.faults.hold or asked)
        return web.json_response(self._describe(prediction), status=201)

    async def _waited(self, prediction: Prediction, seconds: float) -> web.Response:
        try:
            async with asyncio.timeout(seconds), prediction.changed:
                await prediction.changed.wait_for(lambda: prediction.id not in self.live)
            status = "processing" if self.faults.always_processing else prediction.status
        except TimeoutError:
            status = "starting"
        return web.json_response(self._describe(prediction) | {"status": status}, status=201)

    def _describe(self, prediction: Prediction) -> dict[str, Any]:
        api = f"{self.url}/v1/predictions/{prediction.id}"
        urls = {"get": api, "cancel": f"{api}/cancel"}
        if not self.faults.without_stream:
            urls["stream"] = f"{self.url}/streams/{prediction.id}"
        return {
            "id": prediction.id,
            "version": prediction.version,
            "status": prediction.status,
            "output": prediction.output,
            "error": prediction.error,
            "logs": "line 1\nCUDA out of memory\n" if prediction.error else "",
            "urls": urls,
            "metrics": {} if prediction.id in self.live else {"predict_time": PREDICT_TIME},
        }

    async def _predict(self, prediction: Prediction) -> None:
        await self._booted.wait()
        if prediction.status != "starting":
            return
        prediction.status = "processing"
        dialect = Dialect(prediction.input.get("encoding", "lmtp"))
        ops = decode_batch(prediction.input["ops_batch_json"])
        prediction.missing = len(ops)

        def deliver(items: Sequence[Item]) -> None:
            arrived = list(items)
            self._loop.call_soon_threadsafe(
                lambda: self._loop.create_task(self._output(prediction, arrived, dialect))
            )

        prediction.session = Session(self.engine, deliver, dialect=dialect)
        prediction.session.receive(ops)

    async def _output(self, prediction: Prediction, items: list[Item], dialect: Dialect) -> None:
        if prediction.status != "processing":
            return
        text = encode_lines(items, dialect)
        prediction.output.append(text)
        prediction.missing -= sum(map(is_last, items))
        if not self.faults.lose_events:
            await prediction.add("output", text)
        if self.faults.failure is not None:
            await self._end(prediction, "failed", self.faults.failure)
        elif prediction.missing == 0:
            await self._end(prediction, "succeeded")

    async def _end(self, prediction: Prediction, status: str, error: str | None = None) -> None:
        if prediction.session is not None:
            prediction.session.close()
        prediction.status, prediction.error = status, error
        reason = {"failed": "error", "canceled": "canceled"}.get(status)
        if error:
            await prediction.add("error", json.dumps({"detail": error}))
        await prediction.add("done", json.dumps({"reason": reason} if reason else {}))

    async def _get(self, request: web.Request) -> web.Response:
        return web.json_response(self._describe(self._find(request)))

    def _find(self, request: web.Request) -> Prediction:
        return next(p for p in self.predictions if p.id == request.match_info["id"])

    async def _cancel(self, request: web.Request) -> web.Response:
        prediction = self._find(request)
        if prediction.status in ("starting", "processing"):
            await self._end(prediction, "canceled")
        with self.change:
            self.cancelled.append(prediction.id)
            self.change.notify_all()
        return web.json_response(self._describe(prediction))

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        if self.faults.stream_status != 200:
            return web.Response(status=self.faults.stream_status)
        prediction = self._find(request)
        last_id = request.headers.get("Last-Event-ID")
        self.last_event_ids.append(last_id)
        replay = last_id is None or self.faults.replay_all
        position = 0 if replay else int(last_id.partition(":")[0]) + 1  # type: ignore[union-attr]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": hi\n\n")
        with contextlib.suppress(ConnectionError):  # the client has gone
            await self._send_events(prediction, response, position)
        return response

    async def _send_events(
        self, prediction: Prediction, response: web.StreamResponse, position: int
    ) -> None:
        sent = 0
        while sent != self.faults.end_stream_after:
            kind, data = await prediction.event(position)
            await self._write(response, f"event: {kind}\nid: {position}:0\n{_data(data)}\n")
            position, sent = position + 1, sent + 1
            if kind == "done":
                break

    async def _write(self, response: web.StreamResponse, text: str) -> None:
        raw = text.encode()
        size = self.faults.bytes_per_write or len(raw)
        for start in range(0, len(raw), size):
            await response.write(raw[start : start + size])
            await asyncio.sleep(0)


def _data(text: str) -> str:
    return "".join(f"data: {line}\n" for line in text.split("\n"))
