"""What is done before the first op, and how much of a GPU's memory keys and values leave."""

from __future__ import annotations

import torch

from lmtp_replicate.engine.kv_budget import gpu_bytes
from lmtp_replicate.engine.packed import PackedModel
from lmtp_replicate.engine.sampling import Sampler
from lmtp_replicate.engine.spans import Spans
from lmtp_replicate.engine.warm_up import run_prompt
from tests.engine.tiny_models import VOCABULARY, tiny_network

GIB = 1 << 30


def test_a_prompt_runs_and_leaves_its_pages_free() -> None:
    for most, tokens in ((20, 20), (1000, 64)):
        pool = Spans(total=4, page_tokens=16)
        packed = PackedModel(tiny_network("llama"), pool)
        run_prompt(packed, Sampler(VOCABULARY), most)
        pool.check([])
        assert packed.store.end == tokens
        keys, _ = packed.store.whole(0)
        assert torch.count_nonzero(keys[:tokens]) > 0


def test_keys_and_values_leave_room_for_sampling() -> None:
    """384 rows of 128 000 ids take 2.2 GiB; 4 of 20 GiB are left anyway."""
    assert gpu_bytes(20 * GIB, 128_000, 128) == 16 * GIB
    assert 5.2 * GIB < gpu_bytes(8 * GIB, 128_000, 128) < 5.4 * GIB
    assert gpu_bytes(2 * GIB, 128_000, 128) == 1 * GIB
