"""Wire compatibility with LMQL 0.7.3, shown on its own code: its two clients read what we write and
we read what they write; its server takes our ops and we take its answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import util
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import aiohttp
import lmql.models.lmtp.lmtp_client as upstream_websocket
import lmql.models.lmtp.lmtp_inference_server as upstream_server
import lmql.models.lmtp.lmtp_scheduler as upstream_scheduler
import numpy as np
import pytest
from lmql.models.lmtp.errors import LMTPStreamError

from lmtp_replicate.protocol.codecs import (
    LineDecoder,
    decode_batch,
    decode_frame,
    decode_items,
    encode_frame,
    encode_lines,
    encode_op,
)
from lmtp_replicate.protocol.masks import Mask
from lmtp_replicate.protocol.messages import (
    Dialect,
    Ending,
    ErrorItem,
    FinishReason,
    Generate,
    Info,
    Item,
    ModelInfo,
    Op,
    Sampling,
    Score,
    TokenItem,
)

LENGTH, STOP = FinishReason.LENGTH, FinishReason.STOP


def load_replicate_client() -> Any:
    """Upstream's module from its file: its name in `sys.modules` belongs to our plug-in."""
    package = "lmql.models.lmtp"
    file = Path(upstream_websocket.__file__).with_name("lmtp_replicate_client.py")
    spec = util.spec_from_file_location(f"{package}.upstreams_own_replicate_client", file)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


upstream_replicate = load_replicate_client()


class WebSocket:
    """A socket that keeps what is sent and yields what is put into `incoming`."""

    def __init__(self, *incoming: str) -> None:
        self.sent: list[str] = []
        self.incoming = incoming

    async def send_str(self, text: str) -> None:
        self.sent.append(text)

    async def close(self) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[Any]:
        for data in self.incoming:
            yield SimpleNamespace(type=aiohttp.WSMsgType.TEXT, data=data)


def as_dict(item: TokenItem) -> dict[str, Any]:
    """How upstream's clients show a token to LMQL."""
    best = {str(token): logprob for token, logprob in item.top_logprobs.items()}
    return {
        "stream_id": item.stream_id,
        "token": item.token,
        "logprob": item.logprob,
        "finish_reason": item.finish_reason,
        "top_logprobs": best,
    }


TOKENS = [
    TokenItem(1, 5, -0.5, {5: -0.5, 7: -1.25}),
    TokenItem(1, 6, -0.25, {6: -0.25}),
    TokenItem(1, 7, -3.0, {7: -3.0}, LENGTH),
]


async def ask_over_websocket(items: list[Item], ask: Any) -> tuple[list[Any], list[Op | ErrorItem]]:
    """Let upstream's websocket client ask, and answer it with `items`; both sides' views."""
    socket = WebSocket()
    client = upstream_websocket.LMTPWebSocketClient("m", socket)

    async def collect() -> list[Any]:
        return [item async for item in ask(client)]

    task = asyncio.create_task(collect())
    await asyncio.sleep(0)  # now it has sent its op and waits
    for frame in encode_frame(items):
        client.handle(SimpleNamespace(data=frame))
    async with asyncio.timeout(10):
        return await task, decode_frame(socket.sent[0])


async def test_websocket_client_generates() -> None:
    bias = {5: 100, 6: 100, 7: 100}
    seen, ops = await ask_over_websocket(
        [*TOKENS],
        lambda client: client.generate(
            [1, 2], max_tokens=3, temperature=0, logit_bias=bias, top_logprobs=2, top_p=0.5
        ),
    )
    assert seen == [as_dict(item) for item in TOKENS]
    sampling = Sampling(temperature=0.0, top_p=0.5)
    assert ops == [Generate(1, (1, 2), 3, sampling, Mask.from_logit_bias(bias), 2)]


async def test_websocket_client_without_bos_and_without_bias() -> None:
    _, ops = await ask_over_websocket(
        [*TOKENS], lambda client: client.generate([None], max_tokens=3, logit_bias=None)
    )
    assert ops == [Generate(1, (), 3)]


async def test_websocket_client_scores() -> None:
    items = [TokenItem(1, 5, -0.5), TokenItem(1, 6, -0.25, {}, STOP)]
    seen, ops = await ask_over_websocket([*items], lambda client: client.score([1, 2], [5, 6]))
    assert [(item["token"], item["logprob"]) for item in seen] == [(5, -0.5), (6, -0.25)]
    assert ops == [Score(1, (1, 2), (5, 6))]


async def test_websocket_client_gets_an_ending_without_a_token() -> None:
    seen, _ = await ask_over_websocket([Ending(1, STOP)], lambda client: client.score([1], []))
    assert [item["finish_reason"] for item in seen] == ["stop"]


async def test_websocket_client_gets_errors_on_their_own_stream() -> None:
    items: list[Item] = [ErrorItem(None, "of nobody"), ErrorItem(2, "of another"), *TOKENS]
    seen, _ = await ask_over_websocket(items, lambda client: client.generate([1]))
    assert len(seen) == 3
    with pytest.raises(LMTPStreamError, match="its own"):
        await ask_over_websocket([ErrorItem(1, "its own")], lambda client: client.generate([1]))


async def test_websocket_client_asks_for_model_info() -> None:
    socket = WebSocket()
    client = upstream_websocket.LMTPWebSocketClient("m", socket)
    task = asyncio.create_task(client.request("MODEL_INFO", {"model": "m"}))
    await asyncio.sleep(0)  # now it has sent its op and waits
    (op,) = decode_frame(socket.sent[0])
    assert op == ModelInfo(1)
    (frame,) = encode_frame([Info(1, {"vocab_size": 64})])
    client.handle(SimpleNamespace(data=frame))
    assert (await task)["model_info"] == {"vocab_size": 64}


class ReplicateService:
    """Stands for the HTTP session of upstream's Replicate client and for its SSE library: keeps the
    input of the prediction and streams `chunks`."""

    def __init__(self, *chunks: str) -> None:
        self.chunks = chunks
        self.input: dict[str, str] = {}

    @asynccontextmanager
    async def post(self, url: str, json: Any, **_: Any) -> AsyncIterator[Any]:
        self.input = json["input"]

        async def body() -> Any:
            return {"urls": {"stream": "stream"}}

        yield SimpleNamespace(status=201, json=body)

    @asynccontextmanager
    async def events(self, url: str, **_: Any) -> AsyncIterator[Any]:
        async def stream() -> AsyncIterator[Any]:
            for chunk in self.chunks:
                yield SimpleNamespace(type="output", data=chunk)
            yield SimpleNamespace(type="done", data="{}")

        yield stream()


@pytest.fixture
def replicate_client(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("REPLICATE_API_TOKEN", "a token")

    def client(service: ReplicateService) -> Any:
        monkeypatch.setattr(
            upstream_replicate.aiohttp_sse_client.client, "EventSource", service.events
        )
        made = upstream_replicate.LMTPReplicateClient("o/m", service, "replicate:o/m/version")
        made.model_validated = True
        return made

    return client


async def test_replicate_client_generates_and_scores(replicate_client: Any) -> None:
    service = ReplicateService(*(encode_lines([item], Dialect.UPSTREAM) for item in TOKENS))
    client = replicate_client(service)
    seen = [item async for item in client.generate([None, 1], max_tokens=3, logit_bias={5: -100})]
    assert seen == [as_dict(item) for item in TOKENS]
    (op,) = decode_batch(service.input["ops_batch_json"])
    assert op == Generate(1, (1,), 3, mask=Mask.from_logit_bias({5: -100}))
    [item async for item in client.score([1], [2])]
    assert decode_batch(service.input["ops_batch_json"]) == [Score(2, (1,), (2,))]


async def test_replicate_client_reads_several_lines_at_once(replicate_client: Any) -> None:
    service = ReplicateService(encode_lines(TOKENS, Dialect.UPSTREAM))
    seen = [item async for item in replicate_client(service).generate([1])]
    assert seen == [as_dict(item) for item in TOKENS]


async def test_replicate_client_raises_errors(replicate_client: Any) -> None:
    line = encode_lines([ErrorItem(1, "zu groß\u2028")], Dialect.UPSTREAM)
    client = replicate_client(ReplicateService(line))
    with pytest.raises(LMTPStreamError, match="zu groß"):
        [item async for item in client.generate([1])]


async def test_replicate_client_asks_for_model_info(replicate_client: Any) -> None:
    service = ReplicateService(encode_lines([Info(1, {"vocab_size": 64})], Dialect.UPSTREAM))
    answer = await replicate_client(service).request("MODEL_INFO", {"model": "o/m"})
    assert answer["model_info"] == {"vocab_size": 64}
    assert decode_batch(service.input["ops_batch_json"]) == [ModelInfo(1)]


def upstream_items(**streams: Any) -> list[dict[str, Any]]:
    """What upstream's server makes of one step of its model, with `top_logprobs` of 2."""
    queue: Queue[Any] = Queue()
    call = upstream_scheduler.GenerateCall([1, 2], {}, {"top_logprobs": 2}, 1, queue)
    batch = upstream_scheduler.GenerateBatch.from_calls([call])
    scores = np.log(np.array([[0.5, 0.25, 0.125, 0.125]], dtype=np.float32))
    streamer = upstream_scheduler.TokenStreamer(batch, eos_token_id=3)
    streamer.log_token(np.array([[1, 2, 0]]), [scores], **streams)
    return [queue.get_nowait()[1] for _ in range(queue.qsize())]


@pytest.mark.parametrize("over_websocket", [True, False])
def test_we_read_upstreams_tokens(over_websocket: bool) -> None:
    (payload,) = upstream_items(last=True)
    if over_websocket:
        (item,) = decode_items(f"TOKEN {json.dumps([payload])}")
    else:
        (item,) = LineDecoder().feed(f"TOKEN {json.dumps(payload)}\n")
    assert isinstance(item, TokenItem)
    assert item == TokenItem(
        1,
        0,
        pytest.approx(-0.6931, abs=1e-4),
        {0: pytest.approx(-0.6931, abs=1e-4), 1: pytest.approx(-1.3863, abs=1e-4)},
        LENGTH,
    )


def test_we_read_upstreams_scores_and_errors() -> None:
    queue: Queue[Any] = Queue()
    arguments = {"score": True, "scoring_offset": 1}
    call = upstream_scheduler.GenerateCall([4, 5, 6], {}, arguments, 1, queue)
    batch = upstream_scheduler.GenerateBatch.from_calls([call])
    upstream_scheduler.ScoreStreamer().log_token(batch, np.array([[0, -0.5, -0.25]]))
    call.error("too bad")
    messages = [queue.get_nowait() for _ in range(3)]
    items = [item for kind, one in messages for item in decode_items(f"{kind} {json.dumps([one])}")]
    assert items == [
        TokenItem(1, 5, -0.5),
        TokenItem(1, 6, -0.25, {}, STOP),
        ErrorItem(1, "too bad"),
    ]


async def test_upstreams_server_takes_our_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    scheduler = SimpleNamespace(put=calls.append, unregister=lambda user: None, gc=lambda: None)
    scheduler.model_info = lambda: "<unavailable>"
    monkeypatch.setattr(upstream_scheduler.Scheduler, "instance", lambda *args, **kwargs: scheduler)
    mask = Mask.from_logit_bias({5: 100, 6: 100})
    ops: list[Op] = [
        Generate(1, (1, 2), 3, Sampling(temperature=0.5, top_p=0.9), mask, 2),
        Score(2, (1,), (5, 6)),
        ModelInfo(3, frozenset({"mask"})),
    ]
    frames = [str(encode_op(op, model="m")) for op in ops]
    socket = WebSocket(*frames)
    await upstream_server.LMTPWebSocketTransport.listen(socket, {}, static=True)
    generate, score = calls
    assert (generate.prompt, generate.logit_bias) == ([1, 2], {5: 100.0, 6: 100.0})
    assert generate.kwargs == {
        "max_tokens": 3,
        "temperature": 0.5,
        "top_logprobs": 2,
        "top_p": 0.9,
    }
    assert (score.prompt, score.kwargs["scoring_offset"]) == ([1, 5, 6], 1)
