"""From a directory to a running engine, also quantised."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lmtp_replicate.engine.options import LoadOptions
from lmtp_replicate.engine.torch_engine import open_engine
from lmtp_replicate.errors import ModelLoadError
from lmtp_replicate.protocol.messages import Generate, Score, TokenItem
from tests.engine.running import answers
from tests.engine.tiny_tokenizer import tiny_tokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        vocab_size=272,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        initializer_range=0.2,
        eos_token_id=256,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(where)
    tiny_tokenizer().save_pretrained(where)
    return where


@pytest.mark.parametrize(
    ("quantize", "tolerance"),
    # 8 bit rounds activations too: the smallest difference in attention can move one by a step.
    [(None, 1e-4), ("4bit", 1e-4), ("8bit", 0.05)],
)
def test_batched_equals_one_by_one(directory: Path, quantize: Any, tolerance: float) -> None:
    ops = [Generate(n, tuple(range(20 * n, 20 * n + 3 * n + 1)), 12) for n in range(8)]
    options = LoadOptions(device="cpu", dtype="float32", quantize=quantize)
    engine = open_engine(directory, options)
    try:
        assert engine.info().path == "packed"
        assert engine.info().quantization == quantize
        together = answers(engine, ops)
        for answer in together:
            assert isinstance(answer.op, Generate)
            tokens = answer.tokens
            # The same positions alone, and all in one step instead of one by one.
            (alone,) = answers(engine, [Score(0, answer.op.prompt, tuple(tokens))])
            for drawn, scored in zip(answer.items, alone.items, strict=True):
                assert isinstance(drawn, TokenItem) and isinstance(scored, TokenItem)
                assert abs(drawn.logprob - scored.logprob) < tolerance
            if quantize != "8bit":
                (alone,) = answers(engine, [answer.op])
                assert alone.tokens == tokens
    finally:
        engine.close()


def test_memory_of_load_options_reaches_the_pool(directory: Path) -> None:
    engine = open_engine(directory, LoadOptions(device="cpu", kv_cache_bytes=40 * 16 * 512))
    try:
        details = engine.info().details
        assert (details["kv_bytes_per_token"], details["kv_tokens"]) == (512, 40 * 16)
    finally:
        engine.close()


@pytest.mark.parametrize(("which", "state"), [("all", "onednn-packed"), ("none", "plain")])
def test_the_choice_of_linear_layers_reaches_the_model(
    directory: Path, which: Any, state: str
) -> None:
    options = LoadOptions(device="cpu", dtype="float32", pack_linears=which, compile_kernels=False)
    engine = open_engine(directory, options)
    try:
        assert engine.info().details["linears"] == state
    finally:
        engine.close()


def test_what_cannot_be_loaded_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError):
        open_engine(tmp_path / "nothing", LoadOptions())


def test_scheduling_needs_no_torch() -> None:
    code = """
import sys
for name in ("torch", "transformers", "numpy"):
    sys.modules[name] = None
import lmtp_replicate.engine.admission
import lmtp_replicate.engine.answers
import lmtp_replicate.engine.interface
import lmtp_replicate.engine.scheduler
import lmtp_replicate.engine.settings
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
