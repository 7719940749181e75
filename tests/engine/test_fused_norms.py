"""Norms by one operator of torch: the same numbers, only where they are the same, and a way back.
What is for GPUs runs on a CPU here, where the operator is made of several."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmtp_replicate.engine import proof
from lmtp_replicate.engine.fused_norms import fuse_norms
from lmtp_replicate.protocol.messages import Generate
from tests.engine.running import answers, running
from tests.engine.test_oracle import oracle
from tests.engine.tiny_models import tiny_loaded, tiny_network


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_fused_norms_compute_the_same(name: str, dtype: torch.dtype, tolerance: float) -> None:
    network = tiny_network(name).to(dtype)
    norms = fuse_norms(network)
    assert len(norms.compiled) > 4
    for norm in norms.compiled:
        x = (torch.randn(1, 70, norm.weight.shape[0]) * 5).to(dtype)
        expected = type(norm).forward(norm, x)
        torch.testing.assert_close(norm(x), expected, rtol=tolerance, atol=1e-6)
    norms.restore("a test")
    assert all("forward" not in vars(module) for module in network.modules())


def test_norms_of_another_kind_and_in_other_dtypes_stay() -> None:
    """Gemma's multiply by one more than the weight."""
    network = tiny_network("gemma3_text")
    torch.nn.init.normal_(network.model.norm.weight)
    assert network.model.norm not in fuse_norms(network).compiled
    assert not fuse_norms(tiny_network("llama").to(torch.float16)).compiled


def test_numbers_of_another_dtype_are_the_models_business() -> None:
    network = tiny_network("llama")
    fuse_norms(network)
    norm, x = network.model.norm, torch.randn(1, 3, 64).double()
    assert torch.equal(norm(x), type(norm).forward(norm, x))


def test_an_engine_with_fused_norms_equals_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "compile_norms", fuse_norms)
    ops: list[Any] = [Generate(n, (n, 3, 4), 12, top_logprobs=2) for n in range(3)]
    with running(tiny_loaded("llama"), page_tokens=4) as engine:
        assert engine.info().details["norms"] == "fused"
        judge = oracle("llama", engine)
        for answer in answers(engine, ops):
            judge.check(answer.op, answer.items)
