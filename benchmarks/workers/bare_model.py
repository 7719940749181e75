"""A transformers model, called with nothing around it: what no engine on the same kernels beats.

Keys and values lie in memory taken beforehand, because transformers' own growing cache copies all
of them in every step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.cache_utils import Cache, DynamicLayer

_ROWS_HINT = 32
"""Rows that oneDNN chooses the weights' layout for."""


class ReservedLayer(DynamicLayer):
    """Keys and values `[batch, head, token, head_dim]` of one layer, `capacity` tokens at most."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, _values: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        batch, heads, _, width = key_states.shape
        self.keys = key_states.new_zeros(batch, heads, self.capacity, width)
        self.values = torch.zeros_like(self.keys)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.length


class PackedLinear(nn.Module):
    """A linear layer by oneDNN, its weight laid out once; the operators are those that
    torch.compile writes when it freezes a model."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach(), _ROWS_HINT)
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class BareModel:
    """`is_packed`: with packed linear layers, the kernels our engine uses on a CPU."""

    def __init__(self, folder: str, dtype: str, *, is_packed: bool = False) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.model.eval()
        if is_packed:
            for name, layer in list(self.model.named_modules()):
                if type(layer) is nn.Linear:
                    self.model.set_submodule(name, PackedLinear(layer))

    def cache(self, capacity: int) -> Cache:
        layers = self.model.config.num_hidden_layers
        return Cache(layers=[ReservedLayer(capacity) for _ in range(layers)])

    def forward(
        self, tokens: Tensor, cache: Cache, *, kept: int = 1, padding: Tensor | None = None
    ) -> Tensor:
        """Logits `[batch, kept, vocabulary]` of the last `kept` of `tokens` `[batch, token]`, which
        follow what is in `cache`. `padding` `[batch]`: empty places before each row's tokens."""
        length = cache.get_seq_length()
        positions = torch.arange(length, length + tokens.shape[1])[None]
        mask = None
        if padding is not None:
            positions = positions - padding[:, None]
            mask = (torch.arange(length + tokens.shape[1]) >= padding[:, None]).long()
        return self.model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            logits_to_keep=kept,
        ).logits

    def join(self, caches: list[Cache], capacity: int) -> tuple[Cache, Tensor]:
        """One cache of all of `caches` (one row each), so that all end at the same place, and the
        padding before each."""
        lengths = torch.tensor([cache.get_seq_length() for cache in caches])
        longest = int(lengths.max())
        joined = self.cache(longest + capacity)
        for index, layer in enumerate(joined.layers):
            first = caches[0].layers[index]
            shape = (len(caches), first.keys.shape[1], 1, first.keys.shape[3])
            layer.lazy_initialization(first.keys.new_zeros(shape), first.values.new_zeros(shape))
            layer.length = longest
            for row, cache in enumerate(caches):
                source, start = cache.layers[index], longest - cache.get_seq_length()
                layer.keys[row, :, start:longest] = source.keys[0, :, : source.length]
                layer.values[row, :, start:longest] = source.values[0, :, : source.length]
        return joined, longest - lengths
