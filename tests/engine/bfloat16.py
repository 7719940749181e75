"""What this CPU can do in bfloat16."""

import torch

from lmtp_replicate.engine.packed_linears import _packable_dtypes


def onednn_packs_bfloat16() -> bool:
    """Whether linear layers in bfloat16 are packed at all."""
    return torch.bfloat16 in _packable_dtypes()
