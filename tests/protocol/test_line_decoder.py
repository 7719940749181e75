"""Replicate's output is one long text; its chunks mean nothing."""

from __future__ import annotations

import logging

import pytest

from lmtp_replicate.protocol import lines
from lmtp_replicate.protocol.codecs import LineDecoder, decode_items
from lmtp_replicate.protocol.limits import Limits
from lmtp_replicate.protocol.messages import ErrorItem, Item, TokenItem

TOKEN = 'TOKEN {"stream_id": 1, "token": 5, "logprob": -0.5}\n'
ITEM = TokenItem(1, 5, -0.5)


def read(*chunks: str) -> list[Item]:
    decoder = LineDecoder()
    return [item for chunk in chunks for item in decoder.feed(chunk)] + decoder.finish()


def test_character_by_character() -> None:
    assert read(*(TOKEN * 3)) == [ITEM] * 3


def test_items_come_with_the_chunk_that_completes_their_line() -> None:
    decoder = LineDecoder()
    assert decoder.feed(TOKEN[:-1]) == []
    assert decoder.feed("\n") == [ITEM]
    assert decoder.finish() == []


def test_the_last_newline_may_be_missing() -> None:
    assert read(TOKEN + TOKEN.rstrip()) == [ITEM] * 2


def test_blank_lines_and_carriage_returns_are_no_content() -> None:
    assert read("\n\r\n" + TOKEN.replace("\n", "\r\n") + "\n") == [ITEM]


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\v", "\f", "\x1c", "\r"])
def test_only_a_newline_ends_a_line(separator: str) -> None:
    escaped = separator if separator.isprintable() or ord(separator) > 0x1F else None
    text = escaped or f"\\u{ord(separator):04x}"
    assert read(f'TOKEN {{"stream_id": 1, "error": "a{text}b"}}\n') == [
        ErrorItem(1, f"a{separator}b")
    ]


def test_a_broken_line_fails_loudly_and_alone() -> None:
    first, error, last = read(TOKEN + 'TOKEN {"stream_id": 1, "tok\n' + TOKEN)
    assert first == last == ITEM
    assert isinstance(error, ErrorItem)
    assert error.stream_id is None
    assert "JSON" in error.error


def test_a_line_without_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LIMITS", Limits(message_bytes=100))
    decoder = LineDecoder()
    for _ in range(50):
        assert decoder.feed("x" * 10) == []
    error, item = decoder.feed("\n" + TOKEN)
    assert isinstance(error, ErrorItem)
    assert "500" in error.error
    assert item == ITEM


def test_what_a_container_prints_is_ignored_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert read("Downloading weights: 40 %\n" * 3 + "FANCY [1]\n" + TOKEN) == [ITEM]
    told = [record for record in caplog.records if "Downloading" in record.getMessage()]
    assert len(told) <= 1
    assert decode_items("Downloading") == []
