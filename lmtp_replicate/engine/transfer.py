"""From Python's numbers to a device's tensors, without waiting for the device."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def whole_numbers(values: Sequence[int]) -> Tensor:
    """`values` as int64 `[n]` on the CPU; several times sooner than `torch.tensor` finds out what
    each of them is."""
    if not values:  # torch takes no empty buffer
        return torch.empty(0, dtype=torch.int64)
    return torch.frombuffer(array("q", values), dtype=torch.int64)


def host_tensor(values: Sequence[object], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`values` in the host's memory, ready to be copied to `device`: a GPU reads page-locked memory
    by itself, whereas from any other memory the copy waits until all work before it is done."""
    return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")


def to_device(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`values` on `device`, `[n]`. torch keeps the page-locked memory until the copy is done."""
    if device.type == "cpu" and dtype == torch.int64:
        return whole_numbers(values)
    return host_tensor(values, dtype, device).to(device, non_blocking=True)
