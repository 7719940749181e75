"""Modules whose runs somebody else follows, or changes: they are left to run as they do."""

from __future__ import annotations

from torch import nn


def is_hooked(module: nn.Module) -> bool:
    """Whether it has hooks, torch's or accelerate's."""
    return bool(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook"))


def is_watched(module: nn.Module) -> bool:
    """Whether it has hooks, or a forward that is not its class's."""
    return is_hooked(module) or "forward" in vars(module)
