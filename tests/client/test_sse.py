from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_replicate.client.sse import Event, EventDecoder

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=20)
data = st.lists(text, min_size=1, max_size=4).map("\n".join)
events = st.lists(
    st.builds(Event, st.sampled_from(["message", "output", "done"]), data, st.none() | text),
    max_size=6,
)
line_ends = st.sampled_from(["\n", "\r\n", "\r"])


def written(event: Event, end: str, comment: str) -> str:
    lines = [f": {comment}"] if comment else []
    lines += [f"event: {event.type}"] if event.type != "message" else []
    lines += [f"id: {event.id}"] if event.id is not None else []
    lines += [f"data: {line}" for line in event.data.split("\n")]
    return "".join(f"{line}{end}" for line in [*lines, ""])


def decoded(chunks: list[bytes]) -> list[Event]:
    decoder = EventDecoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


@given(events, line_ends, text, st.data())
def test_any_cut_gives_the_same_events(
    sent: list[Event], end: str, comment: str, draw: st.DataObject
) -> None:
    raw = "".join(written(event, end, comment) for event in sent).encode()
    cuts = draw.draw(st.lists(st.integers(0, len(raw)), max_size=8).map(sorted))
    chunks = [raw[start:stop] for start, stop in pairwise([0, *cuts, len(raw)])]
    # Each event comes out with its own empty line, only a final CR may be half a CRLF.
    assert decoded(chunks) == sent
    assert decoded([raw[i : i + 1] for i in range(len(raw))]) == sent


@given(st.lists(st.binary(max_size=30), max_size=10))
def test_no_bytes_break_the_decoder(chunks: list[bytes]) -> None:
    assert decoded(chunks) == decoded([b"".join(chunks)])


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"\xef\xbb\xbfdata: x\n\n", [Event("message", "x")]),
        (b"data:x\n\ndata:  y\n\n", [Event("message", "x"), Event("message", " y")]),
        (b"data\n\n", [Event("message", "")]),
        (b"event: done\n\n", []),
        (b"data: cut off\n", []),
        (b": hi\n\nretry: 5\nunknown: x\ndata: x\n\n", [Event("message", "x")]),
        (b"id: 1\ndata: a\n\ndata: b\n\n", [Event("message", "a", "1"), Event("message", "b")]),
        ("data: \u2028\x85\x0c\n\n".encode(), [Event("message", "\u2028\x85\x0c")]),
        (b"data: a\ndata: \n\n", [Event("message", "a\n")]),
    ],
)
def test_the_details(raw: bytes, expected: list[Event]) -> None:
    assert decoded([raw]) == expected
