"""A built work directory on the real Cog runtime, and a model with code of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmtp_replicate.building import build
from lmtp_replicate.errors import PredictionError
from lmtp_replicate.gateway.cog_events import Completed, Output
from lmtp_replicate.gateway.cog_runtime import CogRuntime
from lmtp_replicate.gateway.work_directory import WorkDirectory
from tests.building.tiny import config_file, tree
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


async def output(runtime: CogRuntime, **inputs: Any) -> str:
    """The whole output of one prediction, which succeeded."""
    chunks: list[str] = []
    async for event in runtime.predict(f"p{len(inputs)}", inputs):
        if isinstance(event, Output):
            chunks.append(event.chunk)
        elif isinstance(event, Completed):
            assert (event.status, event.error) == ("succeeded", None)
    return "".join(chunks)


@pytest.mark.slow
async def test_a_built_directory_answers_on_the_real_runtime(
    tmp_path: Path, llama: Path, wheel: Path
) -> None:
    text = "[models.demo]\nhuggingface.repo = 'llama'\nconfig.torch_dtype = 'float32'\n"
    (work,) = build(config_file(tmp_path, text), [], tmp_path / "work", wheel=wheel)
    before = tree(work)
    ops = [
        ["GENERATE", {"stream_id": 1, "prompt": [72, 105], "max_tokens": 3}],
        ["MODEL_INFO", {"stream_id": 2}],
    ]
    async with CogRuntime(WorkDirectory.read(work)) as runtime:
        lines = (await output(runtime, ops_batch_json=json.dumps(ops))).splitlines()
        tokens = [json.loads(line[6:]) for line in lines if line.startswith("TOKEN")]
        assert {item["stream_id"] for item in tokens} == {1}
        assert 1 <= len(tokens) <= 3
        assert tokens[-1]["finish_reason"] in ("stop", "length")
        assert any('"float32"' in line for line in lines if line.startswith("MSG"))

        assert await output(runtime, prompt="Hi", max_length=4, temperature=0.0, n=2)

        # The runtime checks inputs by the schema that the build wrote.
        for wrong in ({"n": 11}, {"top_p": 0}, {"encoding": "other"}, {"max_length": "many"}):
            with pytest.raises(PredictionError, match=next(iter(wrong))):
                await output(runtime, prompt="Hi", **wrong)
    build(config_file(tmp_path, text), [], tmp_path / "work", wheel=wheel)
    after = tree(work)
    assert {name: after[name] for name in before} == before  # Python may leave a __pycache__


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
