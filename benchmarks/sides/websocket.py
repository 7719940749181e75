"""A side behind a websocket: a server's process, and a client in ours."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

from benchmarks.sides.clients import Client
from benchmarks.sides.process import SideProcess
from benchmarks.sides.side import Batch, ChainAnswer, FanOutAnswer, SideError
from benchmarks.trace import Trace
from benchmarks.workload import Chain, FanOut, Request
from lmtp_replicate.errors import LmtpReplicateError

ANSWER_SECONDS = 900


class WebSocketSide(ABC):
    """How work is put to a server; the servers differ in start and client."""

    def __init__(self, name: str, process: SideProcess) -> None:
        self.name = name
        self._process = process
        self._client: Client | None = None

    @abstractmethod
    async def _connected(self) -> Client:
        """Start the server and connect."""

    async def open(self) -> None:
        self._client = await self._connected()

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
        await self._process.stop()

    def memory(self) -> dict[str, int]:
        """Of the server (see `SideProcess`)."""
        return self._process.memory()

    def reset_peak(self) -> None:
        self._process.reset_peak()

    async def answer(
        self,
        request: Request,
        bias: Mapping[int, float] | None = None,
        on_token: Callable[[Trace], None] | None = None,
    ) -> Trace:
        """One request; `on_token` sees the trace after each of its tokens. What a server sends
        beyond `max_tokens` is not counted."""
        assert self._client is not None, "not open"
        trace = Trace(perf_counter())
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                async for token, _ in self._client.generate(
                    request.prompt, request.max_tokens, bias
                ):
                    if len(trace.tokens) < request.max_tokens:
                        trace.tokens.append(token)
                        trace.times.append(perf_counter())
                        if on_token is not None:
                            on_token(trace)
        except (LmtpReplicateError, TimeoutError) as error:
            raise SideError(f"{self.name}: {error or 'no answer in time'}") from error
        if len(trace.tokens) < request.max_tokens:
            raise SideError(f"{self.name} ended a stream after {len(trace.tokens)} tokens")
        return trace

    async def batch(self, requests: Sequence[Request], streams: int) -> Batch:
        traces: list[Trace | None] = [None] * len(requests)
        waiting = iter(enumerate(requests))

        async def stream() -> None:
            for index, request in waiting:
                traces[index] = await self.answer(request)

        start = perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(streams):
                group.create_task(stream())
        wall = perf_counter() - start
        return Batch([trace for trace in traces if trace is not None], wall)

    async def chain(self, chain: Chain) -> ChainAnswer:
        biases = [mask.bias for mask in chain.masks] or [None]
        answers, seconds = [], []
        prompt = chain.prompt
        start = perf_counter()
        for op in range(chain.ops):
            began = perf_counter()
            request = Request(prompt, chain.max_tokens)
            trace = await self.answer(request, biases[op % len(biases)])
            seconds.append(perf_counter() - began)
            answers.append(trace.tokens)
            prompt = (*prompt, *trace.tokens)
        return ChainAnswer(answers, seconds, perf_counter() - start)

    async def fan_out(self, fan_out: FanOut) -> FanOutAnswer:
        seconds, scores = [], []
        for prefix in fan_out.prefixes:
            if fan_out.generated:
                written = await self.answer(Request(prefix, fan_out.generated))
                prefix = (*prefix, *written.tokens)
            start = perf_counter()
            scores.append(
                await asyncio.gather(*(self._score(prefix, option) for option in fan_out.options))
            )
            seconds.append(perf_counter() - start)
        return FanOutAnswer(seconds, scores)

    async def _score(self, prefix: Sequence[int], option: Sequence[int]) -> list[float]:
        assert self._client is not None, "not open"
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return [logprob async for _, logprob in self._client.score(prefix, option)]
        except (LmtpReplicateError, TimeoutError) as error:
            raise SideError(f"{self.name}: {error or 'no answer in time'}") from error
