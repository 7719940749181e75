"""The client: ask a model for tokens, scores and its card, from any event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, cast
from weakref import WeakSet

from lmtp_replicate.client.account import Account, token_from
from lmtp_replicate.client.batch import Call
from lmtp_replicate.client.burst import send
from lmtp_replicate.client.channel import Channel
from lmtp_replicate.client.endpoint import Endpoint, ReplicateEndpoint, parse_endpoint
from lmtp_replicate.client.hub import CLOSED, Hub, process_hub
from lmtp_replicate.client.peer import Peer
from lmtp_replicate.client.query import Query
from lmtp_replicate.client.replicate import ReplicatePeer
from lmtp_replicate.client.settings import Savings
from lmtp_replicate.client.stats import Stats
from lmtp_replicate.client.token_stream import TokenStream
from lmtp_replicate.client.websocket import TOKEN_VARIABLE, WebSocketPeer
from lmtp_replicate.errors import LmtpReplicateError, StreamError, TransportError
from lmtp_replicate.protocol.mask_names import MaskNames
from lmtp_replicate.protocol.messages import (
    EXTENSIONS,
    ErrorItem,
    Generate,
    Info,
    ModelInfo,
    Op,
    Score,
)
from lmtp_replicate.protocol.validation import read_op

DEFAULT_MAX_TOKENS = 32
"""As upstream's server has it."""


def connect(endpoint: str, *, model: str | None = None) -> Client:
    """A client for `endpoint`; `model` names the model where the endpoint does not.

    Nothing is sent yet. Raises `EndpointError` for a wrong spelling and `AuthenticationError` when
    a `replicate:` endpoint is used without REPLICATE_API_TOKEN.
    """
    return Client(endpoint, model=model)


class Client:
    """One user of an endpoint. Clients are cheap: connections, look-ups and batching are shared by
    all clients of the process. Also an asynchronous context manager that closes itself."""

    def __init__(self, endpoint: str, *, model: str | None = None) -> None:
        self._address, self._make_peer = _peer_for(parse_endpoint(endpoint, model=model))
        self._streams: WeakSet[TokenStream] = WeakSet()
        self._is_closed = False
        self._query = Query()
        self._masks = MaskNames()

    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        temperature: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        top_logprobs: int = 1,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
    ) -> TokenStream:
        """Continue `prompt` (token ids) by 1 to `max_tokens` tokens.

        logit_bias: by token id; -100 or less forbids, +100 or more allows only such ids, between
        is added to the logits. Log probabilities are natural and at temperature 1. Raises
        `ProtocolError` at once for a bad argument; the stream raises `StreamError`,
        `PredictionError`, `EndpointError` or `TransportError`.
        """
        op = read_op(
            "GENERATE",
            {
                "stream_id": 0,
                "prompt": list(prompt),
                "max_tokens": max_tokens,
                "temperature": temperature,
                "logit_bias": None if logit_bias is None else dict(logit_bias),
                "top_logprobs": top_logprobs,
                "top_k": top_k,
                "top_p": top_p,
                "seed": seed,
                "repetition_penalty": repetition_penalty,
                "presence_penalty": presence_penalty,
                "frequency_penalty": frequency_penalty,
            },
            self._masks,
        )
        return self._stream(cast(Generate, op))

    def score(self, prompt: Sequence[int], scored: Sequence[int]) -> TokenStream:
        """Log probability of each token of `scored` after `prompt` and the tokens before it: one
        item per token, in order. Errors as for `generate`."""
        fields = {"stream_id": 0, "prompt": list(prompt), "scored": list(scored)}
        return self._stream(cast(Score, read_op("SCORE", fields, self._masks)))

    async def model_info(self) -> Mapping[str, Any]:
        """What the server tells about the model and how it is run; asked once per process."""
        self._check_open()
        known = self.known_model_info
        if known is not None:
            return known
        channel = self._send(ModelInfo(0, frozenset(EXTENSIONS)))
        try:
            answer = await channel.get()
        finally:
            channel.abandon()
        match answer:
            case Info():
                return answer.model_info
            case LmtpReplicateError():
                raise answer
            case ErrorItem():
                raise StreamError(answer.error)
        raise StreamError(f"the server answered MODEL_INFO by {answer!r}")

    @property
    def known_model_info(self) -> Mapping[str, Any] | None:
        """`model_info`, if it has arrived by now: the first prediction of an endpoint asks for it
        where that costs nothing."""
        return self._peer(process_hub()).info

    @property
    def savings(self) -> Savings:
        """Which means of saving predictions the endpoint's text leaves on."""
        return self._peer(process_hub()).savings

    @property
    def stats(self) -> Stats:
        """What this client's ops have cost so far; of a prediction that other clients share, all
        of it."""
        return self._query.tally.stats

    def when_settled(self, tell: Callable[[Stats], None]) -> None:
        """Call `tell` with the final `stats` as soon as nothing runs any more for this client's
        ops: at once, or later, on another thread."""
        self._query.when_settled(tell)

    def close(self) -> None:
        """End what this client has open; the readers meet a `TransportError`. Idempotent; any
        thread."""
        self._is_closed = True
        for stream in list(self._streams):
            stream.fail(TransportError(CLOSED))

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _stream(self, op: Generate | Score) -> TokenStream:
        self._check_open()
        return TokenStream(op, self._open_channel)

    def _open_channel(self, stream: TokenStream) -> Channel:
        self._check_open()
        self._streams.add(stream)
        return self._send(stream.op, may_end_early=stream.may_end_early)

    def _send(self, op: Op, *, may_end_early: bool = False) -> Channel:
        hub = process_hub()
        stream_id = hub.next_id()
        channel = Channel(asyncio.get_running_loop(), partial(hub.leave, stream_id))
        call = Call(replace(op, stream_id=stream_id), channel, self._query, may_end_early)
        send(hub, self._peer(hub), call)
        return channel

    def _peer(self, hub: Hub) -> Peer:
        return hub.peer(self._address, self._make_peer)

    def _check_open(self) -> None:
        if self._is_closed:
            raise TransportError("the client is closed")


def _peer_for(endpoint: Endpoint) -> tuple[Hashable, Callable[[Hub], Peer]]:
    """What tells the endpoint's peer from others in a hub, and how the hub makes it."""
    if isinstance(endpoint, ReplicateEndpoint):
        account = Account.from_environment()
        return (endpoint, account), lambda hub: ReplicatePeer(hub, endpoint, account)
    token = token_from(os.environ, TOKEN_VARIABLE)
    return (endpoint, token), lambda hub: WebSocketPeer(hub, endpoint, token)
