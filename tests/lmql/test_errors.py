"""What goes wrong reaches LMQL's user as one clear error, and no query hangs."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path

import lmql
import pytest

import lmtp_replicate  # noqa: F401 - the plug-in
from lmtp_replicate.errors import (
    AuthenticationError,
    EndpointError,
    LmtpReplicateError,
    TransportError,
)
from tests.gateway_thread import TOKEN, GatewayThread
from tests.lmql.alphabet import save_tokenizer

QUERY = 'argmax "abc[X]" where len(TOKENS(X)) < 6'


async def ask(endpoint: str, tokenizer: str, query: str = QUERY) -> str:
    """The variable X. A query that hangs fails the test."""
    model = lmql.model("any", endpoint=endpoint, tokenizer=tokenizer)
    result = await asyncio.wait_for(lmql.run(query, model=model), 60)
    return str(result.variables["X"])


async def test_a_missing_token(gateway: GatewayThread, tokenizer: str, monkeypatch) -> None:
    monkeypatch.delenv("REPLICATE_API_TOKEN")
    with pytest.raises(AuthenticationError, match=r"REPLICATE_API_TOKEN is not set.*export"):
        await ask("replicate:local/alphabet", tokenizer)


async def test_a_refused_token(gateway: GatewayThread, tokenizer: str, monkeypatch) -> None:
    monkeypatch.setenv("REPLICATE_API_TOKEN", "r8_of_someone_else")
    with pytest.raises(AuthenticationError, match="refused; check REPLICATE_API_TOKEN") as caught:
        await ask("replicate:local/alphabet", tokenizer)
    assert "r8_of_someone_else" not in str(caught.value)


async def test_a_wrong_spelling(gateway: GatewayThread, tokenizer: str) -> None:
    with pytest.raises(EndpointError, match="replicate:ORG/MODEL, replicate:ORG/MODEL/VERSION"):
        await ask("replicate:alphabet", tokenizer)


@pytest.mark.parametrize("name", ["local/unknown", "local/alphabet/0000", "deployment/local/none"])
async def test_an_unknown_model(gateway: GatewayThread, tokenizer: str, name: str) -> None:
    with pytest.raises(EndpointError, match=r"Replicate knows no .*check the spelling"):
        await ask(f"replicate:{name}", tokenizer)


def test_an_unknown_model_in_a_synchronous_query(gateway: GatewayThread, tokenizer: str) -> None:
    model = lmql.model("replicate:local/unknown", tokenizer=tokenizer)
    for _ in range(2):  # a failed query spoils nothing for the next
        with pytest.raises(EndpointError, match="local/unknown"):
            lmql.run_sync(QUERY, model=model)


async def test_an_unreachable_host(tokenizer: str, monkeypatch) -> None:
    monkeypatch.setattr("lmtp_replicate.client.retry.MOST_ATTEMPTS", 2)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setenv("REPLICATE_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("REPLICATE_API_TOKEN", TOKEN)
    with pytest.raises(TransportError, match=f"127.0.0.1:{port}.*cannot be reached.*BASE_URL"):
        await ask("replicate:local/alphabet", tokenizer)


async def test_a_wrong_tokenizer(
    gateway: GatewayThread, caplog: pytest.LogCaptureFixture, tokenizer: str
) -> None:
    other = str(save_tokenizer(Path(os.environ["HOME"]), shift=5))
    with caplog.at_level(logging.WARNING):
        await ask("replicate:local/alphabet", tokenizer)
        assert not caplog.messages
        for _ in range(2):
            await ask("replicate:local/alphabet", other, 'argmax "abc[X]" where len(TOKENS(X)) < 3')
    (message,) = caplog.messages
    assert "is not that of the model alphabet" in message
    assert "tokenizer=" in message


async def test_a_bad_argument(gateway: GatewayThread, tokenizer: str) -> None:
    with pytest.raises(LmtpReplicateError, match=r"top_p.*7"):
        await ask(
            "replicate:local/alphabet",
            tokenizer,
            'sample(temperature=1.0, top_p=7.0) "abc[X]" where len(TOKENS(X)) < 6',
        )


@pytest.mark.slow
async def test_an_engine_that_fails_in_mid_stream(
    own_gateway: GatewayThread, tokenizer: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Many tokens arrive, then the engine is lost: LMQL asks again and meets the error."""
    with pytest.raises(LmtpReplicateError, match="broke in the middle"):
        await ask("replicate:local/alphabet", tokenizer, 'argmax "!ab[X]" where STOPS_AT(X, ".")')
    assert any("a stream ended early; LMQL asks again" in message for message in caplog.messages)


def _answered(gateway: GatewayThread) -> int:
    """How many predictions have produced a token."""
    outputs = ["".join(p["output"] or ()) for p in gateway.get("/predictions")["results"]]
    return sum("logprob" in output for output in outputs)


@pytest.mark.slow
async def test_a_model_process_that_dies(
    own_gateway: GatewayThread, tokenizer: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In mid-stream: LMQL asks again, and the new process answers."""
    folder = own_gateway.work
    os.mkfifo(folder / "hold")
    query = 'argmax "-ab[X]" where STOPS_AT(X, ".")'
    asking = asyncio.ensure_future(ask("replicate:local/alphabet", tokenizer, query))
    async with asyncio.timeout(60):  # the process waits at "y"
        while await asyncio.to_thread(_answered, own_gateway) < 1:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await asyncio.to_thread((folder / "hold").write_text, "")
    assert await asking == "cdefghijklmnopqrstuvwxyz."
    assert any("a stream ended early; LMQL asks again" in message for message in caplog.messages)
    own_gateway.wait_until_quiet()


@pytest.mark.slow
async def test_a_gateway_that_is_gone(
    own_gateway: GatewayThread, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await ask("replicate:local/alphabet", tokenizer) == "defgh"
    own_gateway.stop()
    monkeypatch.setattr("lmtp_replicate.client.retry.MOST_ATTEMPTS", 2)
    with pytest.raises(TransportError, match="cannot be reached"):
        await ask("replicate:local/alphabet?memory=off", tokenizer)
