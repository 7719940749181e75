"""One op answered from the stream of another, as far as that goes its way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from lmtp_replicate.client.batch import Call
from lmtp_replicate.client.channel import Delivery
from lmtp_replicate.client.leaders import Lead
from lmtp_replicate.client.path_memo import fitted, is_cut, rest_of
from lmtp_replicate.protocol.messages import Ending, FinishReason, Generate, TokenItem


class Follower:
    """A sink for what the leading stream brings from now on. Whatever becomes of that one (it goes
    another way, ends, fails), `call` is answered: `go_on` gets what is left to ask. Where the
    reader is content with a part, the part is its answer. `leave`: tell the stream that this reader
    is gone."""

    def __init__(
        self, call: Call, lead: Lead, leave: Callable[[], None], go_on: Callable[[Call], None]
    ) -> None:
        assert isinstance(call.op, Generate)
        self._call = call
        self._op = call.op
        self._ahead = deque(lead.ahead)
        self._left = lead.left
        self._leave = leave
        self._go_on = go_on
        self._taken: list[int] = []
        self._is_over = False

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody will read any more."""
        return self._call.channel.is_abandoned

    def put(self, items: Iterable[Delivery]) -> None:
        """The next items of the leading stream."""
        if self._is_over:
            return
        own: list[TokenItem] = []
        for item in items:
            self._is_over = not self._take(item, own)
            if self._is_over:
                break
        is_answered = bool(own) and own[-1].finish_reason is not None
        if self._is_over:
            self._leave()
        if self._is_over and not is_answered:
            self._part(own)
        elif own:
            self._call.channel.put(own)

    def _take(self, item: Delivery, own: list[TokenItem]) -> bool:
        """Add to `own` what `item` answers; whether there is more to come."""
        if not isinstance(item, TokenItem):
            return False
        self._left -= 1
        if self._left < 0 or is_cut(item, self._left):
            return False
        if self._ahead:
            return self._ahead.popleft() == item.token and item.finish_reason is None
        is_last = len(self._taken) + 1 == self._op.max_tokens
        may_be_full = item.finish_reason is FinishReason.LENGTH and not is_last
        if may_be_full and not self._call.may_end_early:
            return False  # nothing might be left to ask behind it
        self._taken.append(item.token)
        own.append(fitted(item, self._op, len(self._taken)))
        return item.finish_reason is None and own[-1].finish_reason is None

    def _part(self, own: Sequence[TokenItem]) -> None:
        """The stream leads no further, and `own` is the last that it has brought."""
        is_enough = self._call.may_end_early and self._taken
        ended = [Ending(self._op.stream_id, FinishReason.LENGTH)] if is_enough else []
        self._call.channel.put([*own, *ended])
        if not is_enough:
            self._go_on(replace(self._call, op=rest_of(self._op, self._taken)))
