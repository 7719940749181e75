"""FlexAttention over the streams' tables: the numbers of gathered attention, without gathering."""

from __future__ import annotations

import gc
import shutil
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from lmtp_replicate.engine.attention import Scores
from lmtp_replicate.engine.decode_attention import GatheredAttention, Reads
from lmtp_replicate.engine.flex_decode import FlexDecodeAttention, block_mask

KV_HEADS, DIM = 2, 16


class Case:
    """Streams of `lengths` tokens in pages dealt at random from a pool with some more. `shared`:
    query heads to a key head."""

    def __init__(
        self, lengths: list[int], page_tokens: int, spare: int, seed: int, shared: int = 2
    ) -> None:
        random = torch.Generator().manual_seed(seed)
        needed = [-(-length // page_tokens) for length in lengths]
        pages = sum(needed) + spare
        dealt = torch.randperm(pages, generator=random)
        parts = torch.split(dealt[: sum(needed)], needed)
        width = max(needed) + spare
        tables = torch.stack([torch.cat([p, p[-1:].expand(width - len(p))]) for p in parts])
        self.tokens = pages * page_tokens
        shape = self.tokens, KV_HEADS, DIM
        self.keys, self.values = (torch.randn(shape, generator=random) for _ in range(2))
        self.query = torch.randn(len(lengths), KV_HEADS * shared, DIM, generator=random)
        self.tables, self.lengths, self.page_tokens = tables, torch.tensor(lengths), page_tokens

    def attended(self, attention: Any, scores: Scores) -> Tensor:
        reads = Reads(self.tables, self.lengths, self.page_tokens)
        with torch.inference_mode():
            result: Tensor = attention.attend(self.query, self.keys, self.values, reads, scores)
        return result


CASES = st.builds(
    Case,
    st.lists(st.integers(1, 60), min_size=1, max_size=5),
    page_tokens=st.integers(1, 16),
    spare=st.integers(0, 3),
    seed=st.integers(0, 99),
    shared=st.sampled_from([1, 2, 3, 7]),
)
SCORES = st.builds(
    Scores,
    scaling=st.sampled_from([0.1, 0.25]),
    window=st.none() | st.integers(1, 70),
    softcap=st.none() | st.just(2.0),
    sinks=st.none() | st.just(torch.linspace(3.0, -1.0, KV_HEADS * 7)),
)


def kernel(query: Tensor, keys: Tensor, *args: Any, **kwargs: Any) -> Any:
    """`flex_attention` with what the GPU's kernel for single queries demands."""
    shared = query.shape[1] // keys.shape[1]
    assert shared.bit_count() == 1, "not a power of two"
    return flex_attention(query, keys, *args, **kwargs)


@settings(max_examples=60, deadline=None)
@given(case=CASES, scores=SCORES)
def test_it_computes_what_gathered_attention_does(case: Case, scores: Scores) -> None:
    if scores.sinks is not None:
        scores = replace(scores, sinks=scores.sinks[: case.query.shape[1]])
    expected = case.attended(GatheredAttention(), scores)
    found = case.attended(FlexDecodeAttention(kernel), scores)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(case=CASES, window=st.none() | st.integers(1, 70))
def test_each_stream_visits_just_the_pages_it_sees(case: Case, window: int | None) -> None:
    reads = Reads(case.tables, case.lengths, case.page_tokens)
    blocks = block_mask(reads, window, case.tokens)
    for stream, length in enumerate(case.lengths.tolist()):
        first = max(0, length - (window or length)) // case.page_tokens
        last = (length - 1) // case.page_tokens
        count = int(blocks.kv_num_blocks[stream, 0, 0])
        visited = blocks.kv_indices[stream, 0, 0, :count].tolist()
        assert visited == case.tables[stream, first : last + 1].tolist()


def test_a_step_leaves_nothing_that_only_the_garbage_collector_frees() -> None:
    case = Case([5, 20], page_tokens=4, spare=1, seed=0)
    gc.disable()
    try:
        reads = Reads(case.tables.clone(), case.lengths, case.page_tokens)
        tables = weakref.ref(reads.tables)
        attention = FlexDecodeAttention(flex_attention)
        attention.attend(case.query, case.keys, case.values, reads, Scores(0.2, 3, None, None))
        del reads
        assert tables() is None
    finally:
        gc.enable()


def test_wider_tables_are_the_same_kernels() -> None:
    compiled = []

    def count(graph: Any, _inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    attention = FlexDecodeAttention(
        torch.compile(flex_attention, fullgraph=True, dynamic=False, backend=count)
    )
    case = Case([5, 20], page_tokens=4, spare=1, seed=0)
    for width in (6, 12):
        case.tables = case.tables[:, :1].expand(-1, width).contiguous()
        case.attended(attention, Scores(0.2, None, None, None))
        assert len(compiled) == 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++")
@pytest.mark.slow
def test_compiled_it_visits_those_pages_only() -> None:
    """The others hold what would show."""
    case = Case([5, 64, 70, 1], page_tokens=16, spare=3, seed=0)
    expected = case.attended(GatheredAttention(), Scores(0.2, None, None, None))
    seen = torch.unique(case.tables)
    for tensor in (case.keys, case.values):
        pages = tensor.view(-1, 16, KV_HEADS, DIM)
        strangers = torch.ones(len(pages), dtype=torch.bool)
        strangers[seen] = False
        assert strangers.any()
        pages[strangers] = torch.nan
    found = case.attended(FlexDecodeAttention(), Scores(0.2, None, None, None))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
