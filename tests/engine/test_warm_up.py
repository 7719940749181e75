"""What is done before the first op, and how much of a GPU's memory keys and values leave."""

from __future__ import annotations

import pytest
import torch

from lmtp_replicate.engine import kv_budget
from lmtp_replicate.engine.kv_budget import gpu_bytes, layer_shares
from lmtp_replicate.engine.packed import PackedModel
from lmtp_replicate.engine.sampling import Sampler
from lmtp_replicate.engine.settings import EngineSettings
from lmtp_replicate.engine.spans import Spans
from lmtp_replicate.engine.warm_up import run_prompt
from tests.engine.tiny_models import VOCABULARY, tiny_loaded, tiny_network

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


def test_keys_and_values_are_where_their_layers_are() -> None:
    network = tiny_network("gemma3_text")  # 4 layers
    assert layer_shares(tiny_loaded("gemma3_text", network)) == {torch.device("cpu"): 1.0}
    network.model.layers[2].to("meta")
    shares = layer_shares(tiny_loaded("gemma3_text", network))
    assert shares == {torch.device("cpu"): 0.75, torch.device("meta"): 0.25}
    without_layers = tiny_loaded("llama", torch.nn.Linear(2, 2))
    assert layer_shares(without_layers) == {torch.device("cpu"): 1.0}


def test_the_gpu_with_the_least_room_for_its_layers_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    free = {first: 40 * GIB, second: 20 * GIB}
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free[device], 80 * GIB))
    loaded = tiny_loaded("llama", device=first, context_length=1 << 30)
    for shares, gibibytes in (
        ({first: 0.5, second: 0.5}, 32),  # 16 of 20 on the second, and as much on the first
        ({first: 0.8, second: 0.2}, 40),  # 32 of 40 on the first
        ({first: 1.0}, 32),
    ):
        monkeypatch.setattr(kv_budget, "layer_shares", lambda _, shares=shares: shares)
        pool = kv_budget.pool(loaded, GIB // 16, EngineSettings(page_tokens=16))
        assert pool.total == gibibytes
