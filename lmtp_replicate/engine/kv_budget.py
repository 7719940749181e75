"""How much memory keys and values may take."""

from __future__ import annotations

import os
from collections import Counter

import torch

from lmtp_replicate.engine.loading import LoadedModel
from lmtp_replicate.engine.pages import PagePool
from lmtp_replicate.engine.scheduler import MOST_ROWS
from lmtp_replicate.engine.settings import EngineSettings
from lmtp_replicate.engine.spans import Spans
from lmtp_replicate.engine.tables import Tables

_CPU_BYTES = 4 << 30
"""On a CPU when nothing is said: this, or a quarter of the machine's."""
_GPU_SHARE = 0.8
"""At most this share of the free device memory when nothing is said: activations are in the rest,
and what recorded steps hold."""
_LOGIT_BYTES = 48
"""The sampler's tensors for one id of one row, all together: logits as they came and in float32,
weights, their sums, sort keys and what sorting takes beside them."""
_OTHER_BYTES = 512 << 20
"""A chunk of prompt on its way through the model, and what recorded decode steps hold."""


def pool(loaded: LoadedModel, bytes_per_token: int, settings: EngineSettings) -> PagePool:
    """Pages for keys and values: never more than the streams can use, never fewer than one."""
    kind = pool_kind(loaded.device, settings)
    available = settings.kv_cache_bytes or _spare_bytes(loaded, settings)
    page_bytes = max(1, bytes_per_token) * settings.page_tokens
    longest = -(-loaded.context_length // settings.page_tokens)
    useful = settings.max_streams * kind.rounded(longest)
    return kind(max(1, min(available // page_bytes, useful)), settings.page_tokens)


def pool_kind(device: torch.device, settings: EngineSettings) -> type[PagePool]:
    """Of pools for a model on `device`."""
    share = device.type == "cuda" if settings.share_pages is None else settings.share_pages
    return Tables if share else Spans


def _spare_bytes(loaded: LoadedModel, settings: EngineSettings) -> int:
    if loaded.device.type == "cuda":
        torch.cuda.empty_cache()  # what the proof has left behind is free
        return int(
            min(
                gpu_bytes(_free(device), loaded.vocab_size, settings.max_streams) / share
                for device, share in layer_shares(loaded).items()
            )
        )
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(_CPU_BYTES, installed // 4)


def layer_shares(loaded: LoadedModel) -> dict[torch.device, float]:
    """On which devices the model's layers are, and which share of them: a layer has its keys and
    values with it."""
    devices: dict[int, torch.device] = {}
    for module in loaded.model.modules():
        index, weight = getattr(module, "layer_idx", None), next(module.parameters(), None)
        if isinstance(index, int) and weight is not None:
            devices[index] = weight.device
    counts = Counter(devices.values()) or Counter([loaded.device])
    return {device: count / counts.total() for device, count in counts.items()}


def _free(device: torch.device) -> int:
    free, _total = torch.cuda.mem_get_info(device)
    return free


def gpu_bytes(free: int, vocab_size: int, max_streams: int) -> int:
    """What of `free` bytes of a GPU keys and values take, and leave enough to sample the rows of
    the largest step; with too little for that, half."""
    sampling = (max_streams + MOST_ROWS) * vocab_size * _LOGIT_BYTES
    return int(max(free * 0.5, min(free * _GPU_SHARE, free - sampling - _OTHER_BYTES)))
