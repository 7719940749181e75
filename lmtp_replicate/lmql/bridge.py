"""The client object that LMQL 0.7.3 makes for each query on a `replicate:` endpoint.

LMQL's side of the bargain: one object per query; `generate` is a plain call whose result needs
`__anext__`; items are dicts. An exception after a stream's fourth token makes LMQL wait for ever,
so a stream that has begun ends quietly, and LMQL's next op meets the error.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from weakref import WeakSet

from lmtp_replicate.client import Client, TokenStream, connect
from lmtp_replicate.errors import EndpointError, LmtpReplicateError
from lmtp_replicate.lmql.beams import Beam
from lmtp_replicate.lmql.shape import Shape
from lmtp_replicate.lmql.summary import tell_at_end
from lmtp_replicate.lmql.tokenizers import Tokenizer, eos_aliases, warn_of_wrong_tokenizer
from lmtp_replicate.protocol.messages import TokenItem

log = logging.getLogger(__name__)
_IGNORED = frozenset({"length_penalty"})
"""What LMQL passes on but no language model server does: it concerns beams, which LMQL keeps."""


class LMTPReplicateClient:
    """See the module. `session` is ignored: it ends with the query. Nothing is sent and nothing
    can fail before the first op, since LMQL turns errors before it into noise."""

    def __init__(
        self,
        model_identifier: str,
        session: object,  # noqa: ARG002 - see above
        endpoint: str,
        *,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.model_identifier = model_identifier
        self._endpoint = endpoint
        self._tokenizer = tokenizer
        self._connected: Client | None = None
        self._streams: WeakSet[TokenStream] = WeakSet()
        self._shape: Shape | None = None
        self._ahead: list[TokenStream] = []
        """What was asked for before LMQL needs it."""
        self._aliases: Mapping[int, int] | None = None
        self._is_closed = False
        self.hint: int | None = None
        """How many tokens LMQL knows the next op may use; 0: it knows nothing, -1: any number."""

    @property
    def is_early(self) -> bool:
        """Whether LMQL goes on as soon as a stream's first token is there."""
        return self._client().savings.early

    async def check_model(self) -> None:
        """Nothing: the first op tells whether the model exists."""

    def generate(self, prompt: Sequence[int], **parameters: Any) -> AsyncIterator[dict[str, Any]]:
        """The tokens of a continuation, as LMQL's dicts. Raises at once for what is wrong with the
        endpoint, the token or the arguments."""
        wanted = {key: value for key, value in parameters.items() if key not in _IGNORED}
        stream = self._client().generate(prompt, **wanted)
        self._streams.add(stream)
        hint, self.hint = self.hint, None
        shape = self._find_shape()
        return _Continuation(stream if shape is None else shape.shaped(stream, hint), self)

    def score(
        self, prompt: Sequence[int], scored_prompt: Sequence[int], **parameters: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """The scored tokens, as LMQL's dicts; LMQL passes their errors on, whenever they come."""
        stream = self._client().score(prompt, scored_prompt, **parameters)
        self._streams.add(stream)
        shape = self._find_shape()
        if shape is not None:
            shape.turn(stream.op.prompt)
        return _Scores(stream)

    @property
    def has_beams(self) -> bool:
        """Whether `step` has any effect."""
        return self._shape is not None and self._shape.beams.are_read

    def step(self, beams: Sequence[Beam]) -> None:
        """LMQL is about to go on from `beams`."""
        if self._shape is not None:
            self._shape.beams.step(beams)

    async def request(self, name: str, _payload: Mapping[str, Any]) -> dict[str, Any]:
        """LMQL asks for "MODEL_INFO" alone, and only when it traces."""
        assert name == "MODEL_INFO"
        return {"model_info": dict(await self._client().model_info())}

    def close(self) -> None:
        """The query is over: whatever is still open ends, on the server too. Idempotent; any
        thread."""
        was_closed, self._is_closed = self._is_closed, True
        for stream in list(self._streams):
            stream.close()
        self._ahead.clear()
        if not was_closed and self._connected is not None:
            tell_at_end(self._connected)

    def translate(self, item: TokenItem) -> dict[str, Any]:
        """`item` for LMQL, whose one EOS id, the tokenizer's, stands for all of the model's."""
        aliases = self._find_aliases()
        top_logprobs = _merged(item.top_logprobs, aliases) if aliases else item.top_logprobs
        token = aliases.get(item.token, item.token)
        return {"token": token, "logprob": item.logprob, "top_logprobs": dict(top_logprobs)}

    def _find_aliases(self) -> Mapping[int, int]:
        """What `eos_aliases` says, as soon as the model's card is known; it comes before the first
        token from all servers that have several EOS ids to tell."""
        if self._aliases is None and self._tokenizer is not None and self._connected is not None:
            info = self._connected.known_model_info
            if info is not None:
                warn_of_wrong_tokenizer(self._tokenizer, info)
                self._aliases = eos_aliases(self._tokenizer, info)
        return self._aliases or {}

    def _find_shape(self) -> Shape | None:
        savings = self._client().savings
        if self._shape is None and savings.shape:
            # What is asked for beforehand reaches LMQL by these.
            is_ahead = savings.ahead and savings.memory and savings.join
            self._shape = Shape(self._ask_ahead if is_ahead else None)
        return self._shape

    def _ask_ahead(self, text: Sequence[int], most: int, width: int) -> None:
        if self._is_closed:
            return  # LMQL still reads what came before
        stream = self._client().generate(text, max_tokens=most, top_logprobs=width)
        stream.may_end_early = True
        stream.begin()
        self._streams.add(stream)
        self._ahead.append(stream)

    def _client(self) -> Client:
        if self._is_closed:
            raise EndpointError("the query that this client was made for is over")
        if self._connected is None:
            self._connected = connect(self._endpoint, model=self.model_identifier)
        return self._connected


class _Continuation(AsyncIterator[dict[str, Any]]):
    """A GENERATE stream that raises only before its first item."""

    def __init__(self, stream: AsyncIterator[TokenItem], client: LMTPReplicateClient) -> None:
        self._stream = stream
        self._client = client
        self._has_begun = False

    async def __anext__(self) -> dict[str, Any]:
        try:
            item = await anext(self._stream)
        except LmtpReplicateError as error:
            if not self._has_begun:
                raise
            log.warning("a stream ended early; LMQL asks again: %s", error)
            raise StopAsyncIteration from None
        self._has_begun = True
        return self._client.translate(item)


class _Scores(AsyncIterator[dict[str, Any]]):
    """A SCORE stream."""

    def __init__(self, stream: TokenStream) -> None:
        self._stream = stream

    async def __anext__(self) -> dict[str, Any]:
        item = await anext(self._stream)
        return {"token": item.token, "logprob": item.logprob}


def _merged(top_logprobs: Mapping[int, float], aliases: Mapping[int, int]) -> dict[int, float]:
    merged: dict[int, float] = {}
    for token, logprob in top_logprobs.items():
        token = aliases.get(token, token)
        merged[token] = max(logprob, merged.get(token, logprob))
    return merged
