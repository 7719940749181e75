"""The streams of one query: as long as LMQL can use them, and ended when it no longer does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from weakref import WeakSet

from lmtp_replicate.client import TokenStream
from lmtp_replicate.lmql.lengths import Lengths
from lmtp_replicate.protocol.messages import Generate, TokenItem


class Shape:
    """See the module. Where LMQL has one sequence under way, as at temperature 0 without beams, a
    later op tells which way it has gone. Should it go several ways after all, a stream that ends
    too soon is asked for again."""

    def __init__(self) -> None:
        self._lengths = Lengths()
        self._greedy: WeakSet[_ShapedStream] = WeakSet()

    def shaped(self, stream: TokenStream, hint: int | None) -> AsyncIterator[TokenItem]:
        """`stream`, which must not have begun, in the place of those that LMQL has left. For `hint`
        see `Lengths.fit`."""
        op = stream.op
        assert isinstance(op, Generate)
        self.turn(op.prompt)
        op = stream.op = self._lengths.fit(op, hint)
        shaped = _ShapedStream(stream, op, self._lengths)
        if op.sampling.temperature == 0 and op.top_logprobs <= 1:
            self._greedy.add(shaped)
        return shaped

    def turn(self, prompt: Sequence[int]) -> None:
        """LMQL goes on from `prompt`: end what does not lead there."""
        for stream in list(self._greedy):
            stream.turn(prompt)


class _ShapedStream(AsyncIterator[TokenItem]):
    """Ends where LMQL has gone another way."""

    def __init__(self, stream: TokenStream, op: Generate, lengths: Lengths) -> None:
        self._stream = stream
        self._op = op
        self._lengths = lengths
        self._text = list(op.prompt)
        self._wanted: Sequence[int] = ()

    async def __anext__(self) -> TokenItem:
        item = await anext(self._stream)
        position = len(self._text)
        self._text.append(item.token)
        if item.finish_reason is not None:
            self._lengths.note(self._op, self._text[len(self._op.prompt) :])
        if position < len(self._wanted) and self._wanted[position] != item.token:
            self._stream.close()
        return item

    def turn(self, prompt: Sequence[int]) -> None:
        """LMQL goes on from `prompt`."""
        if len(self._text) == len(self._op.prompt):
            return  # it has not begun, and LMQL cannot do without a first token
        self._wanted = prompt
        common = min(len(prompt), len(self._text))
        if list(prompt[:common]) != self._text[:common]:
            self._stream.close()
