"""Proof that a model is causal: what comes later does not change earlier logits."""

from __future__ import annotations

from typing import Any

import torch

from lmtp_replicate.errors import ModelLoadError

# Both sequences have the same shape, so kernels and roundings are the same; what remains is the
# routing of experts and the outliers of 8-bit products.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}


def require_causal(network: Any, source: str) -> None:
    """Raises ModelLoadError when the logits at a position depend on the token after it.

    transformers loads encoders such as BERT as language models too, with attention in both
    directions; what they would generate is nonsense. `network`: in eval mode.
    """
    width = network.get_input_embeddings().weight.shape[0]
    device = network.get_input_embeddings().weight.device
    first, one, other = width // 2, width // 3, width // 4
    with torch.inference_mode():
        before, after = (
            network(torch.tensor([[first, last]], device=device), use_cache=False).logits[0, 0]
            for last in (one, other)
        )
    difference = (before.float() - after.float()).abs().max().item()
    if difference > _TOLERANCE[network.dtype] * before.float().abs().max().item():
        raise ModelLoadError(
            f"{source}: is not a causal language model: later tokens change earlier ones' logits"
        )
