"""The memory behind a page pool: keys and values of all layers, token by token.

One tensor `[token, kv_head, head_dim]` for keys and one for values per layer, made when the layer
first writes (only then its shapes, dtype and device are known for every architecture), so that a
span of pages is a view and the new tokens of all streams are written by one scatter. Memory is
zero-filled, and zeroed again before another stream's use where it may be read before it is written
(see `Scheduler`): attention multiplies what it masks by zero, and a stale NaN would come through.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from lmtp_replicate.engine.pages import Clear, Copy, PagePool


class KVStore:
    """Keys and values of a `PagePool`; grows by doubling up to the pool's size."""

    def __init__(self, pool: PagePool) -> None:
        self._most = pool.tokens
        self._tokens = min(pool.tokens, 64 * pool.page_tokens)
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def bytes_per_token(self) -> int:
        """What a token takes in all layers that have written so far."""
        return sum(tensor[0].nbytes for tensor in self._tensors())

    def reserve(self, tokens: int) -> None:
        """Have memory for the first `tokens` places."""
        assert tokens <= self._most
        if tokens <= self._tokens:
            return
        while self._tokens < tokens:
            self._tokens = min(2 * self._tokens, self._most)
        for index, (keys, values) in self._layers.items():
            self._layers[index] = (self._grown(keys), self._grown(values))

    def change(self, changes: Iterable[Copy | Clear]) -> None:
        """Carry out `changes` in order. A copy's source and target may overlap."""
        for change in changes:
            match change:
                case Clear(first, length):
                    self.reserve(first + length)
                    for tensor in self._tensors():
                        tensor[first : first + length] = 0
                case Copy(source, target, length):
                    self.reserve(target + length)
                    for tensor in self._tensors():
                        tensor[target : target + length] = tensor[source : source + length].clone()

    def write(self, layer: int, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put `keys` and `values` (`[1, kv_head, token, head_dim]`) at `places` (int64)."""
        if layer not in self._layers:
            self._layers[layer] = (self._empty(keys), self._empty(values))
        for stored, new in zip(self._layers[layer], (keys, values), strict=True):
            stored.index_copy_(0, places, new[0].transpose(0, 1))

    def view(
        self, layer: int, first: int, batch: int, capacity: int, window: slice
    ) -> tuple[Tensor, Tensor]:
        """Keys and values, both `[batch, kv_head, token, head_dim]`, of `batch` neighbouring spans
        of `capacity` tokens from place `first` on; of each run only the tokens in `window`."""
        keys, values = (
            tensor[first : first + batch * capacity]
            .view(batch, capacity, *tensor.shape[1:])[:, window]
            .transpose(1, 2)
            for tensor in self._layers[layer]
        )
        return keys, values

    def _tensors(self) -> list[Tensor]:
        return [tensor for pair in self._layers.values() for tensor in pair]

    def _empty(self, like: Tensor) -> Tensor:
        return like.new_zeros(self._tokens, like.shape[1], like.shape[3])

    def _grown(self, tensor: Tensor) -> Tensor:
        grown = tensor.new_zeros(self._tokens, *tensor.shape[1:])
        grown[: len(tensor)] = tensor
        return grown
