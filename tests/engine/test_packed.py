"""A packed step that comes to nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmtp_replicate.engine.packed import PackedModel
from lmtp_replicate.engine.pages import Copy
from lmtp_replicate.engine.plan import Plan, Work
from lmtp_replicate.engine.spans import Spans
from lmtp_replicate.engine.stream import Stream
from lmtp_replicate.protocol.messages import Score
from tests.engine.tiny_models import tiny_network


def test_memory_is_changed_before_a_step_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is in no work may have its place copied: the scheduler believes it has."""
    pool = Spans(64, 16)
    op = Score(1, (3,), (1, 4, 1, 5, 9))
    stream = Stream(op, op.prompt, limit=6)
    stream.place = pool.take(6)
    follower = pool.take(6)
    assert stream.place is not None
    assert follower is not None
    model = PackedModel(tiny_network("llama"), pool)
    source, target = (place.pages[0] * pool.page_tokens for place in (stream.place, follower))
    with torch.inference_mode():
        model.forward(Plan(works=[Work(stream, 0, 5)]))

        def without_memory(*_: Any) -> None:
            raise torch.OutOfMemoryError

        monkeypatch.setattr("lmtp_replicate.engine.packed.lay_out", without_memory)
        with pytest.raises(torch.OutOfMemoryError):
            model.forward(Plan(changes=[Copy(source, target, 5)], works=[Work(stream, 5, 1)]))
    keys, values = model.store.whole(0)
    for tensor in (keys, values):
        assert tensor[source].any()
        assert torch.equal(tensor[target : target + 5], tensor[source : source + 5])
