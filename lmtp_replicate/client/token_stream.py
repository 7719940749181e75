"""What `generate` and `score` return: the tokens of one op, as they arrive."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from lmtp_replicate.client.channel import Channel, Delivery
from lmtp_replicate.errors import LmtpReplicateError, StreamError
from lmtp_replicate.protocol.messages import Ending, ErrorItem, Generate, Score, TokenItem


class TokenStream(AsyncIterator[TokenItem]):
    """An asynchronous iterator over the op's items; the op is sent when the first is asked for.

    A class and not a generator, so that dropping it in the middle, also by a cancelled task or the
    garbage collector, ends the op on the server at once. Any failure is raised where it happens;
    GENERATE without a token and SCORE with a token too few are failures.
    """

    def __init__(
        self, op: Generate | Score, open_channel: Callable[[TokenStream], Channel]
    ) -> None:
        self.op = op
        self.may_end_early = False
        """Whether the reader is content with the part of the answer that costs nothing. Takes
        effect before the first item is asked for, as a change of `op` does."""
        self._open_channel = open_channel
        self._channel: Channel | None = None
        self._received = 0
        self._is_over = isinstance(op, Score) and not op.scored

    async def __anext__(self) -> TokenItem:
        if self._is_over:
            raise StopAsyncIteration
        channel = self.begin()
        try:
            delivery = await channel.get()
        except BaseException:
            self.close()
            raise
        return self._accept(delivery)

    def begin(self) -> Channel:
        """Send the op, if that was not done."""
        if self._channel is None:
            self._channel = self._open_channel(self)
        return self._channel

    def _accept(self, delivery: Delivery) -> TokenItem:
        if self._is_over:  # closed while the reader waited
            raise StopAsyncIteration
        if isinstance(delivery, TokenItem):
            self._received += 1
            self._is_over = delivery.finish_reason is not None
            if self._is_over:
                self._check_complete()
            return delivery
        self._is_over = True
        match delivery:
            case LmtpReplicateError():
                raise delivery
            case ErrorItem():
                raise StreamError(delivery.error)
            case Ending():
                self._check_complete()
        raise StopAsyncIteration

    def _check_complete(self) -> None:
        expected = len(self.op.scored) if isinstance(self.op, Score) else 1
        if self._received < expected:
            raise StreamError(
                f"the server ended the stream after {self._received} of at least {expected} tokens"
            )

    def fail(self, error: LmtpReplicateError) -> None:
        """End the op; its reader meets `error`. Any thread."""
        if self._channel is not None and not self._is_over:
            self._channel.fail(error)

    def close(self) -> None:
        """End the op; the iterator is exhausted. Idempotent; any thread."""
        is_open = not self._is_over
        self._is_over = True
        if is_open and self._channel is not None:
            self._channel.fail(StreamError("the stream was closed"))  # wakes a waiting reader

    async def aclose(self) -> None:
        """`close`, as asynchronous generators spell it."""
        self.close()

    def __del__(self) -> None:
        self.close()
