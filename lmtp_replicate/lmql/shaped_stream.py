"""A GENERATE stream that ends where LMQL has gone another way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import reduce

from lmtp_replicate.client import TokenStream
from lmtp_replicate.lmql.lengths import Lengths
from lmtp_replicate.protocol.messages import Generate, TokenItem


class ShapedStream(AsyncIterator[TokenItem]):
    """`stream`, which must not have begun. on_begin: called when its first item is asked for.
    on_item: called for each that was read, with the place before it."""

    def __init__(
        self,
        stream: TokenStream,
        lengths: Lengths,
        *,
        on_begin: Callable[[], None] | None = None,
        on_item: Callable[[int, TokenItem], None] | None = None,
    ) -> None:
        assert isinstance(stream.op, Generate)
        self._stream = stream
        self._op = stream.op
        self._lengths = lengths
        self._on_begin = on_begin
        self._on_item = on_item
        self._wanted: Sequence[int] = ()
        self.text = list(self._op.prompt)
        """The prompt, and what was read."""
        self.place = place_of(self.text)
        self.is_over = False

    async def __anext__(self) -> TokenItem:
        if self._on_begin is not None:
            self._on_begin()
            self._on_begin = None
        try:
            item = await anext(self._stream)
        except BaseException:
            self.is_over = True
            raise
        self._read(item)
        return item

    def _read(self, item: TokenItem) -> None:
        position, place = len(self.text), self.place
        self.text.append(item.token)
        self.place = place_after(place, item.token)
        if item.finish_reason is not None:
            self.is_over = True
            self._lengths.note(self._op, self.text[len(self._op.prompt) :])
        if self._on_item is not None:
            self._on_item(place, item)
        if position < len(self._wanted) and self._wanted[position] != item.token:
            self._end()

    def turn(self, tokens: Sequence[int]) -> None:
        """LMQL goes on from `tokens`, and from nowhere else."""
        self._wanted = tokens
        self.end_unless(self.leads_to(tokens))

    def leads_to(self, tokens: Sequence[int]) -> bool:
        """Whether the text goes by `tokens`, or may come there."""
        common = min(len(tokens), len(self.text))
        return list(tokens[:common]) == self.text[:common]

    def end_unless(self, is_wanted: bool) -> None:
        """End it if it is not wanted; but LMQL cannot do without a first token."""
        has_begun = len(self.text) > len(self._op.prompt)
        if has_begun and not is_wanted:
            self._end()

    def _end(self) -> None:
        self.is_over = True
        self._stream.close()


def place_of(text: Sequence[int]) -> int:
    """A name for `text`."""
    return reduce(place_after, text, 0)


def place_after(place: int, token: int) -> int:
    """The name of the text that goes on from `place` by `token`."""
    return hash((place, token))
