"""The benchmark model as GGUF, llama.cpp's format. Runs in llama.cpp's venv."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OTHER_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def converted(folder: Path, dtype: str) -> Path:
    """The GGUF file beside the model's own, made at the first call. `dtype`: float32 or float16."""
    path = folder / f"{dtype}.gguf"
    if path.exists():
        return path
    config = json.loads((folder / "config.json").read_text())
    unfinished = path.with_suffix(".unfinished")
    writer = gguf.GGUFWriter(str(unfinished), "llama")
    _write_config(writer, config)
    for name, weight in load_file(folder / "model.safetensors").items():
        target, weight = _renamed(name.removesuffix(".weight"), weight, config)
        is_matrix = weight.ndim == 2
        writer.add_tensor(
            target, weight.astype(np.float16 if is_matrix and dtype == "float16" else np.float32)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(path)
    return path


def _write_config(writer: gguf.GGUFWriter, config: dict) -> None:
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(float(config["rope_parameters"]["rope_theta"]))
    writer.add_tokenizer_model("none")


def _renamed(name: str, weight: np.ndarray, config: dict) -> tuple[str, np.ndarray]:
    if name in OTHER_NAMES:
        return f"{OTHER_NAMES[name]}.weight", weight
    _, _, layer, rest = name.split(".", 3)
    heads = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}
    if rest in heads:
        weight = _interleaved(weight, config[heads[rest]])
    return f"blk.{layer}.{LAYER_NAMES[rest]}.weight", weight


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """transformers rotates a head's first half against its second, llama.cpp neighbours."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))
