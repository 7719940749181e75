"""Load options: spellings, contradictions, and what the engine keeps for itself."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from lmtp_replicate.engine.options import LoadOptions
from lmtp_replicate.errors import ConfigError


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"load_in_4bit": True}, {"quantize": "4bit"}),
        ({"load_in_8bit": True, "load_in_4bit": False}, {"quantize": "8bit"}),
        ({"load_in_8bit": False}, {}),
        ({"load_in_8bit": False, "quantize": "4bit"}, {"quantize": "4bit"}),
        ({"torch_dtype": "torch.float16"}, {"dtype": "float16"}),
        ({"torch_dtype": "bf16", "dtype": "bfloat16"}, {"dtype": "bfloat16"}),
        ({"torch_dtype": "auto"}, {}),
        ({"use_safetensors": False}, {"allow_pickle": True}),
        ({"use_safetensors": True}, {}),
        ({"low_cpu_mem_usage": True}, {}),
        ({"rope_scaling": {"factor": 2}}, {"model_args": {"rope_scaling": {"factor": 2}}}),
        ({"x": 1, "model_args": {"y": 2}}, {"model_args": {"x": 1, "y": 2}}),
        (
            {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
            {"quantize": "4bit", "model_args": {"bnb_4bit_quant_type": "fp4"}},
        ),
    ],
)
def test_old_spellings_mean_the_new_ones(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert LoadOptions.from_model_args(old) == LoadOptions(**new)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"load_in_4bit": True, "load_in_8bit": True}, "load_in_8bit"),
        ({"load_in_4bit": True, "quantize": "8bit"}, "load_in_4bit"),
        ({"load_in_4bit": "yes"}, "load_in_4bit"),
        ({"torch_dtype": "float16", "dtype": "bfloat16"}, "torch_dtype"),
        ({"torch_dtype": 16}, "dtype"),
        ({"dtype": "float8"}, "dtype"),
        ({"quantize": "2bit"}, "quantize"),
        ({"use_safetensors": True, "allow_pickle": True}, "use_safetensors"),
        ({"device": "tpu"}, "device"),
        ({"device": "cpu", "device_map": "auto"}, "device_map"),
        ({"kv_cache_bytes": 0}, "kv_cache_bytes"),
        ({"attn_implementation": "sdpa"}, "attn_implementation"),
        ({"model_args": {"attn_implementation": "sdpa"}}, "attn_implementation"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantization_config"),
        ({"model_args": {"load_in_4bit": True}}, "load_in_4bit"),
        ({"model_args": {"dtype": "float16"}}, "dtype"),
        ({"model_args": 3}, "model_args"),
        ({"llm_int8_threshold": 6.0}, "llm_int8_threshold"),
        ({"bnb_4bit_quant_type": "nf4", "load_in_4bit": False}, "bnb_4bit_quant_type"),
    ],
)
def test_a_wrong_option_is_refused_by_name(arguments: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"\b{key}: "):
        LoadOptions.from_model_args(arguments)


def test_a_secret_is_refused_without_being_shown() -> None:
    with pytest.raises(ConfigError, match="token: ") as caught:
        LoadOptions.from_model_args({"token": "hf_verysecret"})
    assert "verysecret" not in str(caught.value)
    assert "HF_TOKEN" in str(caught.value)


def test_options_survive_json() -> None:
    options = LoadOptions.from_model_args({"load_in_8bit": True, "llm_int8_threshold": 6.0})
    assert LoadOptions.model_validate_json(options.model_dump_json()) == options


def test_unknown_fields_and_changes_are_refused() -> None:
    with pytest.raises(ValidationError, match="quantise"):
        LoadOptions.model_validate({"quantise": "4bit"})
    with pytest.raises(ValidationError, match="frozen"):
        LoadOptions().dtype = "float16"  # type: ignore[misc]


def test_options_need_no_torch() -> None:
    code = """
import sys
for name in ("torch", "transformers", "numpy", "huggingface_hub"):
    sys.modules[name] = None
import lmtp_replicate.engine.options, lmtp_replicate.protocol.fingerprint
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
