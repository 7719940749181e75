"""Packed or fallback: decided by what the model computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmtp_replicate.engine import attention
from lmtp_replicate.engine.attention import packed_attention
from lmtp_replicate.engine.proof import Verdict, prove
from lmtp_replicate.errors import ModelLoadError
from lmtp_replicate.protocol.messages import Generate
from tests.engine.oracle import Oracle
from tests.engine.running import answers, running
from tests.engine.tiny_models import TINY, VOCABULARY, tiny_loaded, tiny_network


def proved(network: Any) -> Verdict:
    return prove(network, VOCABULARY, 256)


@pytest.fixture(autouse=True)
def _registered() -> Any:
    yield
    attention.AttentionInterface.register(attention.PACKED, packed_attention)


@pytest.mark.parametrize("name", TINY)
def test_the_path_of_every_architecture(name: str) -> None:
    assert proved(tiny_network(name)).path == TINY[name].path


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("llama", {"scaling": 0.9}),
        ("gemma3_text", {"sliding_window": None}),
        ("gemma3_text", {"sliding_window": 7}),
        ("gemma2", {"softcap": None}),
        ("gpt_oss", {"s_aux": None}),
    ],
)
def test_attention_that_computes_something_else_is_found_out(
    name: str, instead: dict[str, Any]
) -> None:
    overrides = {"attn_logit_softcapping": 1.0} if name == "gemma2" else {}
    attention.AttentionInterface.register(
        attention.PACKED,
        lambda *args, **kwargs: packed_attention(*args, **{**kwargs, **instead}),
    )
    verdict = proved(tiny_network(name, **overrides))
    assert verdict.path == "fallback"
    assert "differ from the model's own eager forward" in verdict.reason


def test_what_attention_does_not_know_it_refuses() -> None:
    attention.AttentionInterface.register(
        attention.PACKED,
        lambda *args, **kwargs: packed_attention(*args, position_bias=torch.ones(1), **kwargs),
    )
    verdict = proved(tiny_network("llama"))
    assert verdict.path == "fallback"
    assert "asks for position_bias" in verdict.reason


def test_attention_in_chunks_is_not_packed() -> None:
    network = tiny_network("llama")
    network.config.attention_chunk_size = 8192
    assert "restricted to chunks" in proved(network).reason


def test_a_cache_that_disagrees_with_its_model_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a cache a stream is run all over again each step, and still right."""
    network = tiny_network("bloom")
    own = network.forward

    def forgetful(*args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        return own(*args, past_key_values=None, **kwargs)

    monkeypatch.setattr(network, "forward", forgetful)
    verdict = proved(network)
    assert not verdict.is_cached
    assert verdict.reason.endswith("so without a cache")
    with running(tiny_loaded("bloom", network)) as engine:
        judge = Oracle(tiny_network("bloom"), tiny_loaded("bloom"), limit=256)
        ops = [Generate(n, (3, 4, n), 9) for n in range(3)]
        for answer in answers(engine, ops):
            judge.check(answer.op, answer.items)


def test_a_model_that_cannot_run_at_all_is_a_load_error() -> None:
    network = tiny_network("llama")

    def explode(*_: object) -> None:
        raise RuntimeError("half of the weights are missing")

    network.register_forward_pre_hook(explode)
    with pytest.raises(ModelLoadError, match=r"LlamaForCausalLM cannot run .*half of the weights"):
        proved(network)


@pytest.mark.parametrize("name", ["llama", "mixtral", "gemma3_text"])
def test_16_bit_models_are_packed_too(name: str) -> None:
    """Rounding makes rows differ there; the proof tells that from computing something else."""
    assert proved(tiny_network(name).to(torch.bfloat16)).path == "packed"
    assert proved(tiny_network("lfm2").to(torch.bfloat16)).path == "fallback"
