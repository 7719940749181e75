"""The linear layers of a model that have been packed, and the way back."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lmtp_replicate.engine.laid_out_linear import LaidOutLinear
from lmtp_replicate.engine.packed_linear import PackedLinear

logger = logging.getLogger(__name__)

_MANY: Final = 2048
"""Rows: a step has no more."""


class _Replaced(NamedTuple):
    names: list[str]
    plain: nn.Module
    """The layer that stood there, without its weight."""
    packed: PackedLinear
    kept: nn.Parameter | None
    """Its weight, where something else uses it and it therefore stayed in memory."""


@dataclass(slots=True)
class Linears:
    """How the linear layers of `model` are run. `state`: the name of the class if any of them is a
    `LaidOutLinear`, else "onednn-packed" or "plain"."""

    model: nn.Module
    state: str
    reason: str
    _replaced: list[_Replaced] = field(default_factory=list)

    def replace(
        self, names: list[str], layer: nn.Module, packed: PackedLinear, others: Collection[int]
    ) -> None:
        """Put `packed` in the places `names` of `layer`, and take its weight from that, unless it
        is one of `others`, the ids of weights that something else uses."""
        weight: Any = layer.weight
        layer.register_parameter("weight", None)
        self._put(names, packed)
        kept = weight if id(weight) in others else None
        self._replaced.append(_Replaced(names, layer, packed, kept))

    def unpack(self, reason: str) -> None:
        """Put the plain layers back, because of `reason`."""
        while self._replaced:  # one by one: no other weight is in memory twice meanwhile
            names, plain, packed, kept = self._replaced.pop()
            weight = _unpacked(plain, packed) if kept is None else kept
            plain.register_parameter("weight", weight)
            self._put(names, plain)
        self.state, self.reason = "plain", reason
        logger.warning("The linear layers are run as torch runs them: %s.", reason)

    def describe(self) -> None:
        """Say what has been done."""
        done = self._replaced
        twice = sum(replaced.kept is not None for replaced in done)
        ours = [replaced.packed for replaced in done if isinstance(replaced.packed, LaidOutLinear)]
        others = [replaced.packed.compiled for replaced in done if replaced.packed not in ours]
        compiled = [layer.kernel.most_rows for layer in others if layer is not None]
        self.state = "onednn-packed"
        self.reason = f"{len(done)} layers, {twice} of them beside a plain weight used elsewhere"
        if ours:
            self.state = ours[0].name  # all of one kind, if all are of one dtype
            self.reason += f"; {len(ours)} {ours[0].description}"
        if compiled:
            rows = "few" if max(compiled) < _MANY else "all"
            self.reason += f"; {rows} rows of {len(compiled)} by our own code"
        logger.info("The linear layers are packed: %s.", self.reason)

    def _put(self, names: list[str], layer: nn.Module) -> None:
        for name in names:
            self.model.set_submodule(name, layer)


def rows_of(weight: Tensor, layer: nn.Module) -> Tensor:
    """`weight` `[out_features, in_features]` as `layer` has it, or the other way round."""
    return weight.t().contiguous() if isinstance(layer, Conv1D) else weight


def _unpacked(plain: nn.Module, packed: PackedLinear) -> nn.Parameter:
    return nn.Parameter(rows_of(packed.plain_weight(), plain), requires_grad=False)
