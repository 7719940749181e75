"""Any interleaving, step by step, with real models: every wanted row of logits is right, and every
page is free, kept or a stream's."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmtp_replicate.engine.pace import Pace
from lmtp_replicate.engine.packed import PackedModel
from lmtp_replicate.engine.pages import PagePool
from lmtp_replicate.engine.plan import Plan
from lmtp_replicate.engine.prefix import RadixPrefixIndex
from lmtp_replicate.engine.scheduler import Scheduler
from lmtp_replicate.engine.spans import Spans
from lmtp_replicate.engine.stream import Stream
from lmtp_replicate.engine.tables import Tables
from tests.engine.machine import JOBS, Job, Machine
from tests.engine.tiny_models import VOCABULARY, tiny_network


class RealMachine(Machine):
    """Runs plans on a real model. `rows`: the logits that every stream got, by position."""

    def __init__(self, network: Any, pool: PagePool, chunk_tokens: int) -> None:
        index = RadixPrefixIndex(pool)
        scheduler = Scheduler(pool, Pace(chunk_tokens), index, max_streams=6)
        super().__init__(scheduler, pool, index)
        self._model = PackedModel(network, pool)
        self.rows: dict[Stream, dict[int, Tensor]] = defaultdict(dict)

    def _forward(self, plan: Plan) -> None:
        wanted = [(work.stream, position) for work in plan.works for position in work.rows]
        for (stream, position), row in zip(wanted, self._model.forward(plan), strict=True):
            assert position not in self.rows[stream], "a row was given twice"
            self.rows[stream][position] = row[:VOCABULARY]

    def _next(self, stream: Stream) -> int:
        return int(self.rows[stream][len(stream.tokens) - 1].argmax())


@cache
def networks(name: str) -> tuple[Any, Any]:
    """The model to be packed, and the oracle's own with eager attention."""
    return tiny_network(name), tiny_network(name)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "gpt_oss"])
@settings(max_examples=40, deadline=None)
@given(
    jobs=st.lists(JOBS, min_size=2, max_size=8),
    page_tokens=st.integers(1, 5),
    spare=st.integers(0, 60),
    chunk_tokens=st.integers(1, 60),
    kind=st.sampled_from([Spans, Tables]),
)
def test_any_interleaving_gives_the_oracles_logits(
    name: str,
    jobs: list[Job],
    page_tokens: int,
    spare: int,
    chunk_tokens: int,
    kind: type[PagePool],
) -> None:
    packed, plain = networks(name)
    pages = -(-max(job.length for job in jobs) // page_tokens) + spare
    run = RealMachine(packed, kind(pages, page_tokens), chunk_tokens)
    with torch.inference_mode():
        run.through(jobs)
        for stream, rows in run.rows.items():
            ids = torch.tensor([stream.tokens])
            expected = plain(input_ids=ids, use_cache=False).logits[0, :, :VOCABULARY]
            for position, row in rows.items():
                assert (row - expected[position]).abs().max() < 2e-4, (stream, position)
