"""The memory behind a page pool: keys and values of all layers, token by token.

One tensor `[token, kv_head, head_dim]` for keys and one for values per layer, made when the layer
first writes (only then its shapes, dtype and device are known for every architecture), so that a
span of pages is a view and the new tokens of all streams are written by one scatter. On a CPU they
are addresses for the whole pool, behind which the system puts memory page by page at the first
write: nothing is reserved beyond what was ever in use, and nothing is copied to grow. Memory is
zero-filled, and zeroed again before another stream's use where it may be read before it is written
(see `Scheduler`): attention multiplies what it masks by zero, and a stale NaN would come through.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable

import torch
from torch import Tensor

from lmtp_replicate.engine.pages import Clear, Copy, PagePool


class KVStore:
    """Keys and values of a `PagePool`."""

    def __init__(self, pool: PagePool) -> None:
        self._tokens = pool.tokens
        self.page_tokens = pool.page_tokens
        self.scratch = pool.total
        """A page that is nobody's: rows that are nobody's write there."""
        self.end = 0
        """Addresses from here on were never written: they are zero, and take no memory on a CPU."""
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def bytes_per_token(self) -> int:
        """What a token takes in all layers that have written so far."""
        return sum(tensor[0].nbytes for tensor in self._tensors())

    def extend(self, end: int) -> None:
        """Addresses before `end` are going to be written."""
        assert end <= self._tokens
        self.end = max(self.end, end)

    def change(self, changes: Iterable[Copy | Clear]) -> None:
        """Carry out `changes` in order. A copy's source and target may overlap."""
        tensors = self._tensors()
        if not tensors:  # nothing has been written
            return
        for change in changes:
            match change:
                case Clear(first, length):
                    end = min(first + length, self.end)
                    torch._foreach_zero_([tensor[first:end] for tensor in tensors])
                case Copy(source, target, length):
                    self.extend(target + length)
                    copied = [tensor[source : source + length] for tensor in tensors]
                    if abs(source - target) < length:
                        copied = [tensor.clone() for tensor in copied]
                    torch._foreach_copy_([t[target : target + length] for t in tensors], copied)

    def write(self, layer: int, addresses: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put `keys` and `values` (`[1, kv_head, token, head_dim]`) at `addresses` (int64)."""
        for stored, new in zip(self.layer(layer, keys, values), (keys, values), strict=True):
            stored.index_copy_(0, addresses, new[0].transpose(0, 1))

    def layer(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all addresses, both `[token, kv_head, head_dim]`, for new ones such as
        `keys` and `values`."""
        if layer not in self._layers:
            self._layers[layer] = (self._empty(keys), self._empty(values))
        return self._layers[layer]

    def view(
        self, layer: int, first: int, batch: int, capacity: int, window: slice
    ) -> tuple[Tensor, Tensor]:
        """Keys and values, both `[batch, kv_head, token, head_dim]`, of `batch` neighbouring spans
        of `capacity` tokens from address `first` on; of each only the tokens in `window`."""
        keys, values = (
            tensor[first : first + batch * capacity]
            .view(batch, capacity, *tensor.shape[1:])[:, window]
            .transpose(1, 2)
            for tensor in self._layers[layer]
        )
        return keys, values

    def gather(self, layer: int, addresses: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of the keys and values at `addresses`, int64 `[batch, token]`: both `[batch,
        kv_head, token, head_dim]`."""
        keys, values = (gathered(tensor, addresses) for tensor in self._layers[layer])
        return keys, values

    def whole(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of all addresses, both `[token, kv_head, head_dim]`."""
        return self._layers[layer]

    def _tensors(self) -> list[Tensor]:
        return [tensor for pair in self._layers.values() for tensor in pair]

    def _empty(self, like: Tensor) -> Tensor:
        tokens = self._tokens + self.page_tokens
        shape = tokens, like.shape[1], like.shape[3]
        if like.device.type != "cpu":
            return like.new_zeros(shape)
        size = tokens * like[0, :, 0].numel() * like.itemsize
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return torch.frombuffer(memory, dtype=like.dtype).view(shape)


def gathered(tensor: Tensor, addresses: Tensor) -> Tensor:
    """Copies of what is at `addresses`, int64 `[batch, token]`, in `tensor`, `[token, kv_head,
    head_dim]`: `[batch, kv_head, token, head_dim]`."""
    found = tensor.index_select(0, addresses.flatten().to(tensor.device))
    return found.view(*addresses.shape, *tensor.shape[1:]).transpose(1, 2)
