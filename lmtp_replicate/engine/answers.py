"""From what was drawn or scored in a step to a stream's items. No torch here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from lmtp_replicate.engine.stream import Stream
from lmtp_replicate.protocol.messages import FinishReason, Generate, TokenItem


def generated(
    stream: Stream,
    token: int,
    logprob: float,
    top_logprobs: Mapping[int, float],
    eos_token_ids: Collection[int],
) -> TokenItem:
    """The item of a token drawn for `stream`, which goes on from it unless it is the last."""
    assert isinstance(stream.op, Generate)
    stream.tokens.append(token)
    stream.answered += 1
    reason = None
    if token in eos_token_ids:
        reason = FinishReason.STOP
    elif stream.answered == stream.op.max_tokens or len(stream.tokens) >= stream.limit:
        reason = FinishReason.LENGTH
    return TokenItem(stream.op.stream_id, token, logprob, top_logprobs, reason)


def scored(stream: Stream, logprobs: Sequence[float]) -> list[TokenItem]:
    """The items of the next scored tokens of `stream`."""
    items = []
    for logprob in logprobs:
        token = stream.tokens[len(stream.context) + stream.answered]
        stream.answered += 1
        is_last = len(stream.context) + stream.answered == len(stream.tokens)
        reason = FinishReason.STOP if is_last else None
        items.append(TokenItem(stream.op.stream_id, token, logprob, {}, reason))
    return items
