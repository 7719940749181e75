"""Small random models, one per architecture, as `load` would hand them over.

Weights are drawn with a large spread, so that a wrong position, neighbour or window shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import linear
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from lmtp_replicate.engine.loading import LoadedModel

VOCABULARY = 93
WIDTH = 96
"""Rows of the head: three more than the vocabulary has ids, as padded checkpoints do."""
EOS = (7, 8)
BOS = 5

_SMALL = {"vocab_size": WIDTH, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA = {**_SMALL, "num_key_value_heads": 2, "intermediate_size": 48}
_MOST = {"max_position_embeddings": 256}


@dataclass(frozen=True)
class Tiny:
    """`settings` of transformers' config for `model_type`, and the path it must take."""

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    path: str = "packed"


TINY = {
    tiny.model_type: tiny
    for tiny in (
        Tiny("llama", _LLAMA | _MOST),
        Tiny("qwen3", _LLAMA | _MOST | {"head_dim": 16}),
        Tiny(
            "gemma3_text",
            _LLAMA
            | _MOST
            | {"num_hidden_layers": 4, "head_dim": 16, "sliding_window": 8}
            | {
                "layer_types": [
                    "sliding_attention",
                    "full_attention",
                    "sliding_attention",
                    "full_attention",
                ]
            },
        ),
        Tiny("gemma2", _LLAMA | _MOST | {"head_dim": 16, "sliding_window": 8}),
        Tiny(
            "gpt2",
            {"vocab_size": WIDTH, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
        ),
        Tiny("opt", _SMALL | _MOST | {"ffn_dim": 48, "word_embed_proj_dim": 64}),
        Tiny("gpt_neox", _SMALL | _MOST | {"intermediate_size": 48}),
        Tiny("phi3", _LLAMA | _MOST | {"pad_token_id": 0, "sliding_window": 8}),
        Tiny("mixtral", _LLAMA | _MOST | {"num_local_experts": 4, "num_experts_per_tok": 2}),
        Tiny(
            "gpt_oss",
            _LLAMA
            | _MOST
            | {"head_dim": 16, "sliding_window": 8, "num_local_experts": 4}
            | {"num_experts_per_tok": 2, "layer_types": ["sliding_attention", "full_attention"]},
        ),
        Tiny(
            "lfm2",
            _LLAMA
            | _MOST
            | {"num_hidden_layers": 3, "block_auto_adjust_ff_dim": False}
            | {"layer_types": ["conv", "full_attention", "conv"]},
            path="fallback",
        ),
        Tiny(
            "bloom", {"vocab_size": WIDTH, "hidden_size": 64, "n_layer": 2, "n_head": 4}, "fallback"
        ),
        Tiny(
            "mamba",
            {"vocab_size": WIDTH, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
            "fallback",
        ),
    )
}


def tiny_network(name: str, **overrides: Any) -> Any:
    """The transformers model `name` of TINY in float32, with eager attention."""
    tiny = TINY[name]
    config = CONFIG_MAPPING[tiny.model_type](**{**tiny.settings, **overrides})
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 1.5 * weight.shape[-1] ** -0.5)
            else:
                weight.add_(0.1 * torch.randn_like(weight))
    return network.eval().requires_grad_(requires_grad=False)


def network_that_reads_a_weight() -> Any:
    """A Llama that multiplies by a layer's weight itself, without that layer."""
    network = tiny_network("llama")
    layer = network.model.layers[0].mlp
    layer.forward = lambda x: layer.down_proj(linear(x, layer.up_proj.weight))
    return network


def tiny_loaded(name: str, network: Any | None = None, **facts: Any) -> LoadedModel:
    """`name` of TINY as a loaded model; `facts` replace LoadedModel's fields."""
    fields: dict[str, Any] = {
        "model": tiny_network(name) if network is None else network,
        "tokenizer": None,
        "model_id": f"tiny/{name}",
        "revision": None,
        "architecture": name,
        "dtype": "float32",
        "dtype_reason": "a test",
        "quantization": None,
        "batch_invariant": True,
        "device": torch.device("cpu"),
        "vocab_size": VOCABULARY,
        "context_length": 256,
        "stable_rope_length": None,
        "eos_token_ids": EOS,
        "bos_token_id": BOS,
        "tokenizer_fingerprint": None,
        "versions": {},
    }
    return LoadedModel(**{**fields, **facts})
