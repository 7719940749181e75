"""A built work directory on the real Cog runtime, and a model with code of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmtp_replicate.building import build
from tests.building.tiny import config_file
from tests.engine.tiny_tokenizer import tiny_tokenizer

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A random llama of 258 tokens, whole, with tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    directory = tmp_path / "llama"
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def predict(work: Path, *inputs: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    arguments = [word for text in inputs for word in ("-i", text)]
    done = subprocess.run(
        [sys.executable, "-m", "lmtp_replicate", "predict", work, *arguments],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_built_directory_answers_on_the_real_runtime(
    tmp_path: Path, llama: Path, wheel: Path
) -> None:
    text = "[models.demo]\nhuggingface.repo = 'llama'\nconfig.torch_dtype = 'float32'\n"
    (work,) = build(config_file(tmp_path, text), [], tmp_path / "work", wheel=wheel)
    ops = [
        ["GENERATE", {"stream_id": 1, "prompt": [72, 105], "max_tokens": 3}],
        ["MODEL_INFO", {"stream_id": 2}],
    ]
    (tmp_path / "ops.json").write_text(json.dumps(ops))
    lines = predict(work, f"ops_batch_json=@{tmp_path / 'ops.json'}").splitlines()
    tokens = [json.loads(line[6:]) for line in lines if line.startswith("TOKEN")]
    assert [item["stream_id"] for item in tokens] == [1] * len(tokens)
    assert 1 <= len(tokens) <= 3
    assert tokens[-1]["finish_reason"] in ("stop", "length")
    assert any('"float32"' in line for line in lines if line.startswith("MSG"))


@pytest.mark.slow
def test_a_model_with_code_of_its_own_is_loaded_from_its_work_directory(
    tmp_path: Path, llama: Path, wheel: Path
) -> None:
    from lmtp_replicate.engine.loading import load
    from lmtp_replicate.engine.options import LoadOptions

    config = json.loads((llama / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["OwnModel"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (llama / "config.json").write_text(json.dumps(config))
    (llama / "own.py").write_text(CODE)
    text = "[models.own]\nhuggingface.repo='llama'\nconfig.trust_remote_code = true\n"
    (work,) = build(config_file(tmp_path, text), [], tmp_path / "work", wheel=wheel)
    options = LoadOptions.model_validate(json.loads((work / "config.json").read_text())["load"])
    assert type(load(work / "checkpoints", options).model).__name__ == "OwnModel"
