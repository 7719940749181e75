"""What this CPU can do in bfloat16."""

import torch

from lmtp_replicate.engine.packed_linears import onednn_packs_bfloat16
from lmtp_replicate.engine.sixteen_bit_linear import BFloat16Linear


def packs_bfloat16() -> bool:
    """Whether linear layers in bfloat16 are packed at all."""
    return onednn_packs_bfloat16() or BFloat16Linear.kernel(torch.bfloat16) is not None
