"""The two websocket clients, ours and LMQL's own, behind one face."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

import aiohttp

from lmtp_replicate.client.client import connect


class Client(Protocol):
    """Token and log probability, one by one."""

    def generate(
        self, prompt: Sequence[int], max_tokens: int, bias: Mapping[int, float] | None
    ) -> AsyncIterator[tuple[int, float]]:
        """Greedily."""

    def score(
        self, prompt: Sequence[int], scored: Sequence[int]
    ) -> AsyncIterator[tuple[int, float]]:
        """Each of `scored`."""

    async def close(self) -> None:
        """Leave the server."""


class OurClient:
    """`lmtp_replicate.client`, as the LMQL plug-in uses it."""

    def __init__(self, port: int) -> None:
        self._client = connect(f"ws://127.0.0.1:{port}")

    async def generate(
        self, prompt: Sequence[int], max_tokens: int, bias: Mapping[int, float] | None
    ) -> AsyncIterator[tuple[int, float]]:
        async for item in self._client.generate(prompt, max_tokens=max_tokens, logit_bias=bias):
            yield item.token, item.logprob

    async def score(
        self, prompt: Sequence[int], scored: Sequence[int]
    ) -> AsyncIterator[tuple[int, float]]:
        async for item in self._client.score(prompt, scored):
            yield item.token, item.logprob

    async def close(self) -> None:
        self._client.close()


class UpstreamClient:
    """LMQL 0.7.3's own, with the arguments LMQL gives it."""

    def __init__(self, session: aiohttp.ClientSession, client: Any) -> None:
        self._session = session
        self._client = client

    @classmethod
    async def connect(cls, port: int, model: str) -> UpstreamClient:
        from lmql.models.lmtp.lmtp_client import LMTPWebSocketClient

        session = aiohttp.ClientSession()
        socket = await session.ws_connect(f"http://127.0.0.1:{port}/")
        client = LMTPWebSocketClient(model, socket)
        client.connect()
        return cls(session, client)

    async def generate(
        self, prompt: Sequence[int], max_tokens: int, bias: Mapping[int, float] | None
    ) -> AsyncIterator[tuple[int, float]]:
        arguments = {"max_tokens": max_tokens, "temperature": 0.0, "top_logprobs": 1}
        async for item in self._client.generate(list(prompt), logit_bias=bias, **arguments):
            yield item["token"], item["logprob"]

    async def score(
        self, prompt: Sequence[int], scored: Sequence[int]
    ) -> AsyncIterator[tuple[int, float]]:
        async for item in self._client.score(list(prompt), list(scored)):
            yield item["token"], item["logprob"]

    async def close(self) -> None:
        await self._session.close()
