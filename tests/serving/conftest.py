"""Engines for these tests: scripted ones, and a tiny random model as a directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scripted_engine import ScriptedEngine
from tests.serving.stepwise_engine import StepwiseEngine


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    engine = ScriptedEngine()
    yield engine
    engine.close()


@pytest.fixture
def stepwise() -> Iterator[StepwiseEngine]:
    engine = StepwiseEngine()
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 258 ids: bytes, an EOS and a BOS; context length 256."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.engine.tiny_tokenizer import tiny_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tokenizer = tiny_tokenizer(("<|start|>",))
    tokenizer.bos_token = "<|start|>"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
