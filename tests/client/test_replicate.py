"""The Replicate client against a server whose wire is spoiled on purpose."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import socket
import threading
from collections.abc import Callable

import pytest

from lmtp_replicate.client import Client, connect
from lmtp_replicate.client.api import MOST_FIRST_CALLS, Api
from lmtp_replicate.client.hub import close_process_hub, process_hub
from lmtp_replicate.errors import (
    AuthenticationError,
    EndpointError,
    LmtpReplicateError,
    PredictionError,
    ProtocolError,
    StreamError,
    TransportError,
)
from tests.client.replicate_double import TOKEN, VERSION, ReplicateDouble

ENDPOINT = "replicate:org/model"


async def tokens(client: Client, start: int, count: int = 4) -> list[int]:
    stream = client.generate([start], max_tokens=count)
    return [item.token async for item in stream]


async def expect(client: Client, start: int = 5, count: int = 4) -> None:
    """One correct answer."""
    found = await asyncio.wait_for(tokens(client, start, count), 30)
    assert found == [start + 1 + step for step in range(count)]


def creates(replicate: ReplicateDouble) -> int:
    return sum(r.startswith("POST") and "cancel" not in r for r in replicate.requests)


async def until(true: Callable[[], bool]) -> None:
    """Wait for what nobody tells of."""
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def heard() -> None:
    """Wait until the hub has done what it can do without waiting."""

    async def settle() -> None:
        for _ in range(100):
            await asyncio.sleep(0)

    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(settle(), process_hub()._loop))


async def quiet(replicate: ReplicateDouble) -> None:
    """Wait until neither side has anything left; fails where something stays."""
    await until(
        lambda: not (process_hub().running or replicate.live or replicate.engine.open_streams)
    )


# The normal case


@pytest.mark.usefixtures("patient")
async def test_a_burst_is_one_prediction_and_ops_end_by_themselves(
    replicate: ReplicateDouble,
) -> None:
    async with connect(ENDPOINT) as client:
        await asyncio.gather(*(expect(client, start, start) for start in range(3, 9)))
        scores = [item async for item in client.score([5], [9, 7, 8])]
    assert replicate.ops == [["MODEL_INFO", *["GENERATE"] * 6], ["SCORE"]]
    assert [item.token for item in scores] == [9, 7, 8]
    assert all(item.logprob < 0 and math.isfinite(item.logprob) for item in scores)
    assert replicate.requests.count("GET /models/org/model") == 1
    assert not replicate.cancelled


async def test_clients_of_one_loop_share_a_prediction(replicate: ReplicateDouble) -> None:
    clients = [connect(ENDPOINT) for _ in range(4)]
    await asyncio.gather(*(expect(client) for client in clients))
    assert creates(replicate) == 1


async def test_a_later_op_is_not_held_back_by_an_earlier_one(replicate: ReplicateDouble) -> None:
    """Each op ends at its own finish_reason, while the prediction that it shares goes on."""
    replicate.engine._step_seconds = 0.001  # at full speed it can outrun everybody who reads
    client = connect(ENDPOINT)
    long = client.generate([2], max_tokens=10**6)
    (first, _) = await asyncio.gather(anext(long), expect(client, 7, 1))
    assert first.token == 3
    replicate.engine.gate.clear()
    assert replicate.live == ["prediction0"]
    replicate.engine.gate.set()
    client.close()


@pytest.mark.parametrize(
    ("endpoint", "path", "version"),
    [
        ("replicate:org/model", "/predictions", VERSION),
        (f"replicate:org/model/{VERSION}", "/predictions", VERSION),
        ("replicate:deployment/org/prod", "/deployments/org/prod/predictions", None),
        ("replicate:org/official", "/models/org/official/predictions", None),
    ],
)
async def test_where_predictions_are_created(
    replicate: ReplicateDouble, endpoint: str, path: str, version: str | None
) -> None:
    async with connect(endpoint) as client:
        await expect(client, 5)
        await expect(client, 20)
    assert replicate.requests.count(f"POST {path}") == 2
    assert [p.body.get("version") for p in replicate.predictions] == [version] * 2
    lookups = [r for r in replicate.requests if r.startswith(("GET /models", "GET /deployments"))]
    assert len(lookups) == len(set(lookups))


async def test_the_extended_dialect_is_used_where_the_schema_offers_it(
    replicate: ReplicateDouble,
) -> None:
    replicate.schema = {"components": {"schemas": {"Input": {"properties": {"prompt": {}}}}}}
    async with connect(ENDPOINT) as client:
        await expect(client)
        assert (await client.model_info())["vocab_size"] == 64
    assert [set(p.input) for p in replicate.predictions] == [{"ops_batch_json"}] * 2
    async with connect(f"replicate:org/model/{VERSION}?idle_timeout=9") as client:
        replicate.schema = {
            "components": {
                "schemas": {"Input": {"properties": {"encoding": {"enum": ["lmtp-extended"]}}}}
            }
        }
        await expect(client)
        assert (await client.model_info())["vocab_size"] == 64
    assert [p.input.get("encoding") for p in replicate.predictions[2:]] == ["lmtp-extended"]


async def test_a_bias_reaches_the_model(replicate: ReplicateDouble) -> None:
    async with connect(ENDPOINT) as client:
        stream = client.generate([5], max_tokens=3, logit_bias={9: 100, 20: 100}, top_logprobs=5)
        items = [item async for item in stream]
    assert [item.token for item in items] == [9, 20, 9]
    assert all(set(item.top_logprobs) == {9, 20} for item in items)
    total = sum(map(math.exp, items[0].top_logprobs.values()))
    assert total == pytest.approx(1.0)


# Arguments and accounts


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"prompt": [1, -2]}, r"prompt\[1\]"),
        ({"prompt": [1], "max_tokens": 0}, "max_tokens"),
        ({"prompt": [1], "temperature": math.nan}, "temperature"),
        ({"prompt": [1], "top_p": 1.5}, "top_p"),
        ({"prompt": [1], "logit_bias": {3: math.inf}}, "logit_bias"),
    ],
)
def test_a_bad_argument_is_refused_at_once(
    replicate: ReplicateDouble, arguments: dict[str, object], field: str
) -> None:
    with pytest.raises(ProtocolError, match=field):
        connect(ENDPOINT).generate(**arguments)  # type: ignore[arg-type]
    assert not replicate.requests


def test_a_missing_token_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REPLICATE_API_TOKEN", raising=False)
    with pytest.raises(AuthenticationError, match="REPLICATE_API_TOKEN"):
        connect(ENDPOINT)


async def test_a_refused_token(replicate: ReplicateDouble, monkeypatch, caplog) -> None:
    monkeypatch.setenv("REPLICATE_API_TOKEN", "r8_stolen")
    with pytest.raises(AuthenticationError, match="refused") as caught:
        await tokens(connect(ENDPOINT), 5)
    assert "r8_stolen" not in f"{caught.value!r}{caplog.text}"
    monkeypatch.setenv("REPLICATE_API_TOKEN", TOKEN)
    await expect(connect(ENDPOINT))


async def test_an_unknown_model_is_asked_for_again(replicate: ReplicateDouble) -> None:
    for _ in range(2):  # it may have been created in between
        with pytest.raises(EndpointError, match="knows no model org/nothing"):
            await tokens(connect("replicate:org/nothing"), 5)
    assert replicate.requests.count("GET /models/org/nothing") == 2


# Refusals and lost answers


async def test_429_with_retry_after_is_waited_for(replicate: ReplicateDouble) -> None:
    replicate.faults.refusals.extend(
        [
            (429, {"Retry-After": "0"}, "slow down"),
            (429, {}, '{"detail": "throttled", "retry_after": 0.01}'),
            (503, {"Retry-After": "0"}, "<html>busy</html>"),
        ]
    )
    await expect(connect(ENDPOINT))
    assert (creates(replicate), len(replicate.predictions)) == (4, 1)


@pytest.mark.parametrize("status", [500, 502, 504])
async def test_a_create_that_may_have_been_accepted_is_not_repeated(
    replicate: ReplicateDouble, status: int
) -> None:
    replicate.faults.refusals.append((status, {}, "<html>Bad gateway</html>"))
    with pytest.raises(TransportError, match=f"{status}.*Bad gateway"):
        await tokens(connect(ENDPOINT), 5)
    assert creates(replicate) == 1
    await expect(connect(ENDPOINT))


async def test_a_lost_answer_is_not_repeated(replicate: ReplicateDouble) -> None:
    replicate.faults.lose_answers = 1
    with pytest.raises(TransportError, match="cannot be reached"):
        await tokens(connect(ENDPOINT), 5)
    assert creates(replicate) == 1
    await expect(connect(ENDPOINT))


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (402, '{"title":"Insufficient credit","detail":"pay"}', EndpointError),
        (403, '{"detail":"not yours"}', AuthenticationError),
        (422, '{"title":"Input validation failed","detail":"- input: bad"}', PredictionError),
    ],
)
async def test_a_refusal_is_told(
    replicate: ReplicateDouble, status: int, body: str, error: type[LmtpReplicateError]
) -> None:
    replicate.faults.refusals.append((status, {}, body))
    with pytest.raises(error, match=json.loads(body)["detail"]):
        await tokens(connect(ENDPOINT), 5)


# Streams


@pytest.mark.parametrize("size", [1, 2, 7])
async def test_chunk_borders_anywhere(replicate: ReplicateDouble, size: int) -> None:
    replicate.faults.bytes_per_write = size
    async with connect(ENDPOINT) as client:
        await asyncio.gather(expect(client), expect(client, 9), expect(client, 20))


async def test_streams_that_end_early_are_resumed(replicate: ReplicateDouble) -> None:
    """From where they ended, and no token is lost or seen twice."""
    replicate.engine.gate.clear()
    replicate.faults.end_stream_after = 1
    reading = asyncio.ensure_future(expect(connect(ENDPOINT), 3, 5))
    stream = "GET /streams/prediction0"
    await asyncio.to_thread(replicate.wait_for, lambda: replicate.requests.count(stream) == 2)
    replicate.engine.gate.set()
    await reading
    assert creates(replicate) == 1
    assert replicate.last_event_ids[:2] == [None, "0:0"]


async def test_a_server_that_repeats_everything(replicate: ReplicateDouble) -> None:
    replicate.engine.gate.clear()
    replicate.faults.replay_all = True
    replicate.faults.end_stream_after = 1
    stream = connect(ENDPOINT).generate([3], max_tokens=5)
    reading = asyncio.ensure_future(_read(stream))
    await asyncio.to_thread(replicate.wait_for, lambda: len(replicate.last_event_ids) > 3)
    replicate.faults.end_stream_after = None
    replicate.engine.gate.set()
    assert await asyncio.wait_for(reading, 20) == [4, 5, 6, 7, 8]


async def _read(stream: object) -> list[int]:
    return [item.token async for item in stream]  # type: ignore[attr-defined]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("fault", ["without_stream", "404", "503", "lose_events"])
async def test_without_a_usable_stream_the_prediction_is_asked(
    replicate: ReplicateDouble, fault: str
) -> None:
    if fault.isdigit():
        replicate.faults.stream_status = int(fault)
    else:
        setattr(replicate.faults, fault, True)
    await expect(connect(ENDPOINT), 3, 8)
    await quiet(replicate)
    assert not replicate.cancelled


async def test_a_failed_prediction_tells_why(replicate: ReplicateDouble) -> None:
    replicate.faults.failure = "the GPU caught fire"
    with pytest.raises(PredictionError, match="the GPU caught fire") as caught:
        await tokens(connect(ENDPOINT), 5)
    assert "CUDA out of memory" in str(caught.value)
    assert "prediction0 of org/model failed" in str(caught.value)
    replicate.faults.failure = None
    await expect(connect(ENDPOINT))


async def test_one_failing_op_leaves_the_others_alone(replicate: ReplicateDouble) -> None:
    client = connect(ENDPOINT)
    bad = client.generate([5], max_tokens=3, logit_bias={200: 100})
    results = await asyncio.gather(_read(bad), expect(client, 9), return_exceptions=True)
    assert isinstance(results[0], StreamError)
    assert results[1] is None
    assert len(replicate.predictions) == 1


async def test_an_engine_that_crashes_in_mid_stream(replicate: ReplicateDouble) -> None:
    replicate.engine._step_seconds = 0.01
    stream = connect(ENDPOINT).generate([5], max_tokens=400)
    assert (await anext(stream)).token == 6
    replicate.engine.crash("out of memory")
    with pytest.raises(StreamError, match="out of memory"):
        await asyncio.wait_for(_read(stream), 20)


# Cold boots


async def test_a_cold_boot_is_waited_for_and_told_once(
    replicate: ReplicateDouble, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lmtp_replicate.client.prediction.FIRST_LOOK", 0.02)
    replicate.shut_down()
    client = connect(ENDPOINT)
    with caplog.at_level(logging.WARNING):
        waiting = asyncio.gather(expect(client), expect(client, 9))
        state = "GET /predictions/prediction0"
        await asyncio.to_thread(replicate.wait_for, lambda: replicate.requests.count(state) > 2)
        replicate.boot()
        await waiting
    (message,) = caplog.messages
    assert "org/model is starting up" in message
    assert creates(replicate) == 1


@pytest.mark.parametrize(
    ("setting", "reason"), [("boot_timeout", "still starting"), ("idle_timeout", "was silent")]
)
async def test_patience_has_an_end(
    replicate: ReplicateDouble, monkeypatch: pytest.MonkeyPatch, setting: str, reason: str
) -> None:
    monkeypatch.setattr("lmtp_replicate.client.prediction.FIRST_LOOK", 0.02)
    if setting == "boot_timeout":
        replicate.shut_down()
    else:
        replicate.engine.gate.clear()
        replicate.schema = {}  # no MODEL_INFO rides along, so nothing at all arrives
    with pytest.raises(TransportError, match=f"{reason}.*was given up.*{setting}"):
        await asyncio.wait_for(tokens(connect(f"{ENDPOINT}?{setting}=0.1"), 5), 20)
    replicate.engine.gate.set()
    await asyncio.to_thread(replicate.wait_for, lambda: replicate.cancelled == ["prediction0"])


async def test_a_failure_is_told_before_the_prediction_is_cancelled(
    replicate: ReplicateDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the server is gone, cancelling is tried for long."""
    told = threading.Event()
    cancel = Api.cancel

    async def late(self: Api, path: str) -> None:
        assert await asyncio.to_thread(told.wait, 30)
        await cancel(self, path)

    monkeypatch.setattr(Api, "cancel", late)
    monkeypatch.setattr("lmtp_replicate.client.prediction.FIRST_LOOK", 0.02)
    replicate.shut_down()
    with pytest.raises(TransportError, match="was given up"):
        await asyncio.wait_for(tokens(connect(f"{ENDPOINT}?boot_timeout=0.1"), 5), 20)
    told.set()
    await asyncio.to_thread(replicate.wait_for, lambda: replicate.cancelled == ["prediction0"])


GONE = (422, {}, '{"title":"Invalid version or not permitted"}')


async def test_a_version_that_was_replaced_is_no_error(
    replicate: ReplicateDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a model was built again and the gateway restarted between two queries."""
    client = connect(ENDPOINT)
    await expect(client)
    monkeypatch.setattr("tests.client.replicate_double.VERSION", "6" * 64)
    replicate.faults.refusals.append(GONE)
    await expect(client, 20)
    assert [p.body["version"][0] for p in replicate.predictions] == ["5", "6"]
    # What is known of the model is of the old version, so that it is asked again.
    assert replicate.ops == [["MODEL_INFO", "GENERATE"]] * 2


async def test_a_refusal_is_not_asked_for_twice(replicate: ReplicateDouble) -> None:
    client = connect(ENDPOINT)
    await expect(client)
    replicate.faults.refusals.append(GONE)
    with pytest.raises(PredictionError, match="Invalid version"):
        await tokens(client, 20)
    assert creates(replicate) == 2
    await expect(client, 20)


async def test_a_refused_introduction_is_made_again(replicate: ReplicateDouble) -> None:
    client = connect(ENDPOINT)
    replicate.faults.refusals.append((402, {}, ""))
    with pytest.raises(EndpointError):
        await tokens(client, 5)
    await expect(client)
    assert replicate.ops == [["MODEL_INFO", "GENERATE"]]


async def test_an_address_where_nobody_listens_is_given_up_soon(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lmtp_replicate.client.retry.FIRST_DELAY", 0.001)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setenv("REPLICATE_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("REPLICATE_API_TOKEN", TOKEN)
    for _ in range(2):  # the second time in a new hub, whose event loop is another
        caplog.clear()
        with (
            caplog.at_level(logging.INFO),
            pytest.raises(TransportError, match=r"cannot be reached.*REPLICATE_BASE_URL"),
        ):
            await tokens(connect(ENDPOINT), 5)
        assert caplog.text.count("trying again") == MOST_FIRST_CALLS - 1
        close_process_hub()
