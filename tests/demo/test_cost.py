"""Counting what a query used."""

from __future__ import annotations

from lmtp_replicate.demo.cost import Cost, count_tokens
from lmtp_replicate.protocol.codecs import encode_lines
from lmtp_replicate.protocol.messages import Dialect, Ending, FinishReason, Info, TokenItem


def test_every_token_counts_once_wherever_chunks_break() -> None:
    items = [Info(1, {}), *(TokenItem(1, token, -0.5) for token in range(5))]
    text = encode_lines([*items, Ending(1, FinishReason.STOP)], Dialect.UPSTREAM)
    for size in (1, 7, len(text)):
        chunks = [text[at : at + size] for at in range(0, len(text), size)]
        assert count_tokens([chunks]) == 5
    assert count_tokens([[text], None, [], [encode_lines(items, Dialect.EXTENDED)]]) == 10


def test_the_cost_in_words() -> None:
    assert str(Cost(4, 41, 1.84)) == "4 predictions, 41 tokens, 1.8 seconds"
