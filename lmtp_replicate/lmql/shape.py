"""The streams of one query: as long as LMQL can use them, and ended when it no longer does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from weakref import WeakSet

from lmtp_replicate.client import TokenStream
from lmtp_replicate.lmql.beams import Ask, Beams
from lmtp_replicate.lmql.lengths import Lengths, is_one_way
from lmtp_replicate.lmql.shaped_stream import ShapedStream
from lmtp_replicate.protocol.messages import Generate, TokenItem


class Shape:
    """See the module. Where LMQL has one sequence under way, as at temperature 0 without beams, a
    later op tells which way it has gone. Should it go several ways after all, a stream that ends
    too soon is asked for again. ask: see `Beams`."""

    def __init__(self, ask: Ask | None) -> None:
        self._lengths = Lengths()
        self._greedy: WeakSet[ShapedStream] = WeakSet()
        self.beams = Beams(ask)

    def shaped(self, stream: TokenStream, hint: int | None) -> AsyncIterator[TokenItem]:
        """`stream`, which must not have begun, in the place of those that LMQL has left. For `hint`
        see `Lengths.fit`."""
        op = stream.op
        assert isinstance(op, Generate)
        self.turn(op.prompt)
        op = stream.op = self._lengths.fit(op, hint)
        stream.may_end_early = True
        if op.sampling.temperature == 0 and op.top_logprobs > 1:
            return self.beams.shaped(stream, self._lengths, hint)
        shaped = ShapedStream(stream, self._lengths)
        if is_one_way(op):
            self._greedy.add(shaped)
        return shaped

    def turn(self, prompt: Sequence[int]) -> None:
        """LMQL goes on from `prompt`: end what does not lead there."""
        for stream in list(self._greedy):
            stream.turn(prompt)
