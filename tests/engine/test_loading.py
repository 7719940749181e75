"""Loading real, tiny models from directories made here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from lmtp_replicate.engine import loading, precision
from lmtp_replicate.engine.loading import load
from lmtp_replicate.engine.options import LoadOptions
from lmtp_replicate.errors import ModelLoadError
from lmtp_replicate.protocol.fingerprint import tokenizer_fingerprint
from tests.engine.tiny_tokenizer import tiny_tokenizer

CPU = torch.device("cpu")
Save = Callable[..., Path]


def llama_config(**changes: Any) -> LlamaConfig:
    settings: dict[str, Any] = {
        "vocab_size": 272,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
        "bos_token_id": None,
        "eos_token_id": 256,
    }
    return LlamaConfig(**(settings | changes))


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Saves a random Llama and its tokenizer; returns the directory."""

    def saved(dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
        torch.manual_seed(0)
        model = LlamaForCausalLM(llama_config(**changes)).to(dtype)
        model.save_pretrained(tmp_path / "model")
        tiny_tokenizer(["<|user|>", "<|turn|>"]).save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return saved


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def test_facts_of_a_model_with_a_padded_head_and_several_eos(save: Save) -> None:
    directory = save()
    edit_json(
        directory / "generation_config.json", eos_token_id=[258, 256], temperature=0.2, top_k=3
    )
    edit_json(directory / "config.json", eos_token_id=[0, 999])
    loaded = load(directory, LoadOptions())
    assert loaded.vocab_size == 259  # 256 bytes, the end, two special tokens; 272 rows
    assert loaded.eos_token_ids == (256, 258, 0)
    assert loaded.bos_token_id is None
    assert loaded.context_length == 96
    assert loaded.architecture == "LlamaForCausalLM"
    assert (loaded.dtype, loaded.quantization, loaded.batch_invariant) == ("float32", None, True)
    assert loaded.revision is None
    assert loaded.device == CPU
    assert set(loaded.versions) == {"lmtp-replicate", "torch", "transformers"}
    assert loaded.tokenizer_fingerprint == tokenizer_fingerprint(
        tiny_tokenizer(["<|user|>", "<|turn|>"]).get_vocab()
    )


def test_the_model_is_ready_for_inference_without_its_own_sampling_defaults(save: Save) -> None:
    directory = save()
    edit_json(directory / "generation_config.json", temperature=0.2, top_k=3, do_sample=True)
    model = load(directory, LoadOptions()).model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert (model.generation_config.temperature, model.generation_config.top_k) == (None, None)


def test_a_model_without_a_tokenizer_has_the_heads_vocabulary(save: Save) -> None:
    directory = save()
    for path in directory.glob("*token*"):
        path.unlink()
    loaded = load(directory, LoadOptions())
    assert (loaded.tokenizer, loaded.tokenizer_fingerprint) == (None, None)
    assert (loaded.vocab_size, loaded.eos_token_ids) == (272, (256,))


def test_opt_has_its_context_length_without_the_offset(tmp_path: Path) -> None:
    config = OPTConfig(
        vocab_size=64,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=40,
    )
    OPTForCausalLM(config).save_pretrained(tmp_path)
    assert load(tmp_path, LoadOptions()).context_length == 40


@pytest.mark.parametrize(
    ("rope", "length"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, None),
        ({"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, None),
        ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, 96),
        (
            {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
                "original_max_position_embeddings": 48,
            },
            48,
        ),
    ],
)
def test_the_length_up_to_which_rope_is_stable(
    save: Save, rope: dict[str, Any], length: Any
) -> None:
    assert load(save(rope_parameters=rope), LoadOptions()).stable_rope_length == length


@pytest.mark.parametrize(
    ("saved", "asked", "fast", "dtype"),
    [
        (torch.float32, "auto", True, "float32"),
        (torch.bfloat16, "auto", True, "bfloat16"),
        (torch.float16, "auto", True, "bfloat16"),
        (torch.bfloat16, "auto", False, "float32"),
        (torch.bfloat16, "float32", True, "float32"),
        (torch.float32, "float16", False, "float16"),
    ],
)
def test_dtype_on_a_cpu(
    save: Save, monkeypatch: pytest.MonkeyPatch, saved: Any, asked: Any, fast: bool, dtype: str
) -> None:
    monkeypatch.setattr(precision, "cpu_multiplies_bfloat16", lambda: fast)
    loaded = load(save(saved), LoadOptions(dtype=asked, device="cpu"))
    assert loaded.dtype == dtype
    assert {str(p.dtype) for p in loaded.model.parameters()} == {f"torch.{dtype}"}
    assert loaded.dtype_reason


@pytest.mark.parametrize(
    ("saved", "bf16", "dtype"),
    [
        ("float32", True, "bfloat16"),
        ("bfloat16", True, "bfloat16"),
        ("float16", True, "float16"),
        (None, True, "bfloat16"),
        ("bfloat16", False, "float16"),
        ("float32", False, "float16"),
        ("float16", False, "float16"),
    ],
)
def test_dtype_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, saved: str | None, bf16: bool, dtype: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
    chosen = precision.choose_precision("auto", saved, torch.device("cuda"))
    assert chosen.dtype == dtype
    assert chosen.reason


def test_torch_is_told_of_the_device_before_the_model_runs(
    save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[object] = []
    monkeypatch.setattr(loading, "choose_kernels", order.append)
    monkeypatch.setattr(loading, "make_current", order.append)
    monkeypatch.setattr(loading, "require_causal", lambda *_: order.append("runs"))
    load(save(), LoadOptions(device="cpu"))
    assert order == [CPU, CPU, "runs"]


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantised_models_run_on_a_cpu_and_do_not_depend_on_the_batch(
    save: Save, quantize: Any, dtype: Any
) -> None:
    loaded = load(save(), LoadOptions(quantize=quantize, dtype=dtype, device="cpu"))
    assert (loaded.quantization, loaded.batch_invariant) == (quantize, True)
    assert "bitsandbytes" in loaded.versions
    plain = load(save(), LoadOptions(dtype=dtype, device="cpu"))
    ids = torch.randint(0, 256, (5, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = loaded.model(ids).logits
        apart = torch.cat([loaded.model(row.unsqueeze(0)).logits for row in ids])
        full = plain.model(ids).logits
    assert together.dtype == getattr(torch, dtype)
    torch.testing.assert_close(together, apart, atol=1e-5 if dtype == "float32" else 1e-2, rtol=0)
    assert 0 < (together - full).abs().max() < full.abs().max()  # quantised, yet the same model


def test_bitsandbytes_does_not_warn_of_every_product(
    save: Save, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load(save(), LoadOptions(quantize="8bit", dtype="bfloat16", device="cpu"))
    caplog.clear()
    with torch.no_grad():
        loaded.model(torch.tensor([[1, 2, 3]]))
    assert not caplog.records


def test_an_outlier_threshold_is_reported_as_batch_dependent(save: Save) -> None:
    options = LoadOptions.from_model_args({"load_in_8bit": True, "llm_int8_threshold": 6.0})
    loaded = load(save(), options)
    assert (loaded.quantization, loaded.batch_invariant) == ("8bit", False)


def test_weights_in_pickle_are_refused_unless_allowed(save: Save) -> None:
    directory = save()
    model = load(directory, LoadOptions()).model
    (directory / "model.safetensors").unlink()
    torch.save(model.state_dict(), directory / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="allow_pickle"):
        load(directory, LoadOptions())
    again = load(directory, LoadOptions(allow_pickle=True)).model
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_code_in_a_checkpoint_is_not_run_unless_allowed(save: Save) -> None:
    directory = save()
    (directory / "theirs.py").write_text(
        "import pathlib\n"
        "pathlib.Path(__file__).parent  # noqa\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class TheirConfig(LlamaConfig):\n    model_type = 'theirs'\n"
        "class TheirModel(LlamaForCausalLM):\n    config_class = TheirConfig\n"
    )
    auto_map = {"AutoConfig": "theirs.TheirConfig", "AutoModelForCausalLM": "theirs.TheirModel"}
    edit_json(directory / "config.json", model_type="theirs", auto_map=auto_map)
    with pytest.raises(ModelLoadError, match="trust_remote_code"):
        load(directory, LoadOptions())
    assert load(directory, LoadOptions(trust_remote_code=True)).architecture == "TheirModel"


def test_names_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="neither a directory nor a Hub id"):
        load(tmp_path / "absent", LoadOptions())
    with pytest.raises(ModelLoadError, match="neither a directory nor a Hub id"):
        load("./absent", LoadOptions())
    with pytest.raises(ModelLoadError, match="neither a directory nor a Hub id"):
        load("a/b/c", LoadOptions())
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        load(tmp_path, LoadOptions())


def test_models_that_are_not_causal(tmp_path: Path) -> None:
    t5 = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=32)
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelLoadError, match="encoder-decoder"):
        load(tmp_path / "t5", LoadOptions())
    bert = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
    BertLMHeadModel(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelLoadError, match="causal"):
        load(tmp_path / "bert", LoadOptions())


def _cut(directory: Path) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def _garble(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type":')


def _unknown(directory: Path) -> None:
    edit_json(directory / "config.json", model_type="quux")


def _incomplete(directory: Path) -> None:
    edit_json(directory / "config.json", num_hidden_layers=3)


def _mismatched(directory: Path) -> None:
    edit_json(directory / "config.json", intermediate_size=96)


def _bad_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_cut, "cannot be loaded"),
        (_garble, "valid JSON"),
        (_unknown, "quux"),
        (_incomplete, "missing keys: model.layers.2"),
        (_mismatched, "mismatch"),
        (_bad_tokenizer, "cannot be loaded"),
    ],
)
def test_damaged_directories_are_one_clear_error(
    save: Save, damage: Callable[[Path], None], says: str
) -> None:
    directory = save()
    damage(directory)
    with pytest.raises(ModelLoadError, match=says) as caught:
        load(directory, LoadOptions())
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_the_model_or_machine_lacks(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = save()
    with pytest.raises(ModelLoadError, match=r"model_args\.quux"):
        load(directory, LoadOptions(model_args={"quux": 1}))
    with pytest.raises(ModelLoadError, match="llm_int8_quux"):
        load(directory, LoadOptions(quantize="8bit", model_args={"llm_int8_quux": 1}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelLoadError, match="no GPU"):
        load(directory, LoadOptions(device="cuda"))


def test_a_checkpoint_that_is_quantised_already(save: Save, tmp_path: Path) -> None:
    load(save(), LoadOptions(quantize="4bit")).model.save_pretrained(tmp_path / "quantised")
    shutil.copytree(tmp_path / "quantised", tmp_path / "copy")
    loaded = load(tmp_path / "quantised", LoadOptions())
    assert (loaded.quantization, loaded.batch_invariant) == ("4bit", True)
    with pytest.raises(ModelLoadError, match="already quantised"):
        load(tmp_path / "copy", LoadOptions(quantize="8bit"))


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")]
)
def test_out_of_memory_says_what_to_do(
    save: Save, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def no_memory(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", no_memory)
    with pytest.raises(ModelLoadError, match="quantize"):
        load(save(), LoadOptions())


def test_nothing_is_printed(save: Save, capfd: pytest.CaptureFixture[str]) -> None:
    directory = save()
    capfd.readouterr()
    load(directory, LoadOptions())
    assert capfd.readouterr().out == ""
