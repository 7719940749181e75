"""The benchmark models: Llamas with random weights, made once into a folder that git ignores."""

from __future__ import annotations

import os
import shutil
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

CACHE = Path(
    os.environ.get("LMTP_BENCHMARK_CACHE", Path(__file__).parents[1] / ".cache/benchmarks")
)
SEED = 20261120
BOS, EOS = 1, 2


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's sizes. `spread`: standard deviation of the random weights."""

    name: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    context: int
    spread: float

    @property
    def kv_elements_per_token(self) -> int:
        """Numbers that one token's keys and values are made of, over all layers."""
        return 2 * self.layers * self.kv_heads * (self.hidden // self.heads)

    @property
    def matrix_parameters(self) -> int:
        """Weights of the layers' matrices, without embeddings and output head."""
        kv = self.kv_heads * (self.hidden // self.heads)
        attention = self.hidden * (2 * self.hidden + 2 * kv)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_parameters(self) -> int:
        """Weights of the output head; the input embeddings have as many."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All weights, norms included."""
        norms = (2 * self.layers + 1) * self.hidden
        return self.matrix_parameters + 2 * self.head_parameters + norms


BENCHMARK = Shape("llama-125m", 32_000, 768, 12, 12, 4, 2048, 8192, 0.06)
"""124.7 million parameters; every table about a CPU is about this one."""
TINY = Shape("llama-tiny", 512, 128, 2, 2, 1, 128, 2048, 0.3)
"""For `--quick`: the whole way in seconds; its figures mean nothing. (vLLM wants heads of at
least 32.)"""
LLAMA_8B = Shape("llama-8b", 128_256, 4096, 32, 32, 8, 14_336, 8192, 0.02)


def make(shape: Shape, dtype: str = "float32") -> Path:
    """The folder of the model, made at the first call. Input and output embeddings are not tied,
    and the output rows of BOS and EOS are zero, so that no greedy stream ends early."""
    digest = zlib.crc32(repr((shape, SEED)).encode())
    folder = CACHE / "models" / f"{shape.name}-{dtype}-{digest:08x}"
    if folder.exists():
        return folder
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=shape.context,
        initializer_range=shape.spread,
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=False,
    )
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    with torch.no_grad():
        model.lm_head.weight[[BOS, EOS]] = 0
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    model.save_pretrained(unfinished)
    try:
        unfinished.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(unfinished)
    return folder


def describe(shape: Shape) -> dict[str, object]:
    """The shape as JSON."""
    return asdict(shape)
