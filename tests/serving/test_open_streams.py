"""What one peer's open streams may hold together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lmtp_replicate.protocol.limits import LIMITS
from lmtp_replicate.protocol.masks import Mask
from lmtp_replicate.protocol.messages import Dialect, Generate, Score
from lmtp_replicate.serving.open_streams import OpenStream, OpenStreams
from lmtp_replicate.serving.relay import Relay

EIGHTH = LIMITS.open_ids // 8


def opened(op: Generate | Score) -> OpenStream:
    return OpenStream(op, Relay(op, lambda: Dialect.EXTENDED))


@pytest.mark.parametrize(
    "op",
    [
        Generate(0, (5,) * EIGHTH, 1),
        Score(0, (5,) * (EIGHTH // 2), (6,) * (EIGHTH // 2)),
        Generate(0, (), 1, mask=Mask(added=((7, 1.0),) * EIGHTH)),
        Generate(0, (), 1, mask=Mask(allowed=b"x" * (EIGHTH * 16), forbidden=b"x" * (EIGHTH * 16))),
    ],
    ids=["prompt", "scored", "added", "bitsets"],
)
def test_what_they_hold_is_bounded(op: Generate | Score) -> None:
    streams = OpenStreams()
    eight = [opened(replace(op, stream_id=number)) for number in range(8)]
    for stream in eight:
        assert streams.why_not(stream) is None
        streams.add(stream)
    one_more = opened(Generate(8, (5,), 1))
    assert str(LIMITS.open_ids) in (streams.why_not(one_more) or "")
    streams.remove(eight[0])
    assert streams.why_not(one_more) is None
    streams.add(one_more)
    assert streams.take_all() == [*eight[1:], one_more]
    assert streams.why_not(opened(Generate(9, (5,) * LIMITS.open_ids, 1))) is None
