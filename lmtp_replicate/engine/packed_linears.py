"""Linear layers whose weights oneDNN has laid out once, for models on a CPU.

torch's own layers hand a row-major matrix to MKL or oneDNN, which rearranges it at each call or
multiplies it as it lies. oneDNN can be given the matrix in the layout its kernels read: torch's
compiler does so when it freezes a model, by the two operators used here. They are private to
torch. So every layer is tried on its real weight before it takes the plain one's place, and all of
them can be put back: unpacking gives the very same numbers.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lmtp_replicate.engine.compiled_linear import CompiledLinear, compiled_linear
from lmtp_replicate.engine.options import PackLinears

logger = logging.getLogger(__name__)

_ROWS_HINT = 32
"""Number of rows the layout is chosen for; it serves all others as well."""
_TRIED_ROWS = (1, 7, 40)
_COMPILED_ROWS = (*range(1, 14), 31, 40, 96, 290)
"""The same for our own code, whose tiles have up to six rows, or sixteen, and whose panels 256."""
_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Largest root mean square difference between packed and plain, as a share of the output's. What
is is of another dtype is not packed."""


class PackedLinear(nn.Module):
    """`x` `[..., in_features]` times `weight` `[out_features, in_features]`, transposed, plus
    `bias`. The weight has a layout of oneDNN's: it tells its shape and dtype, as some models ask,
    but no operator that reads its numbers takes it."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.compiled: CompiledLinear | None = None
        """Our own code for few rows, where it has been found to compute the same."""
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Tensor) -> Tensor:
        if self.compiled is not None and self.compiled.takes(x):
            return self.compiled(x)
        linear: Any = torch.ops.mkldnn._linear_pointwise
        product: Tensor = linear(x, self.weight, self.bias, "none", [], "")
        return product


class _Replaced(NamedTuple):
    names: list[str]
    plain: nn.Module
    """The layer that stood there, without its weight."""
    packed: PackedLinear
    kept: nn.Parameter | None
    """Its weight, where something else uses it and it therefore stayed in memory."""


@dataclass(slots=True)
class Linears:
    """How the linear layers of `model` are run. `state`: "onednn-packed" or "plain"."""

    model: nn.Module
    state: str
    reason: str
    _replaced: list[_Replaced] = field(default_factory=list)

    def unpack(self, reason: str) -> None:
        """Put the plain layers back, because of `reason`."""
        for names, plain, packed, kept in self._replaced:
            weight = _unpacked(plain, packed) if kept is None else kept
            plain.register_parameter("weight", weight)
            _put(self.model, names, plain)
        self._replaced.clear()
        self.state, self.reason = "plain", reason
        logger.warning("The linear layers are run as torch runs them: %s.", reason)


def pack_linears(model: nn.Module, which: PackLinears, *, compile_kernels: bool = True) -> Linears:
    """Replace the linear layers of `model` that are on a CPU by packed ones, and with
    `compile_kernels` have our own code compute few rows of them.

    Only layers of exactly torch's and transformers' own classes: what is derived from them
    (bitsandbytes, LoRA) computes something else. A plain weight is freed as soon as it is packed,
    unless something else uses it too, as the input embeddings use a tied head's; "untied" leaves
    such layers as they are. If one layer does not equal its plain one, all stay plain.
    """
    linears = Linears(model, "plain", "as asked")
    if which == "none":
        return linears
    layers = _packable(model)
    if not layers:
        linears.reason = "none that can be packed"
        return linears
    others = _other_weights(model, layers)
    chosen = [layer for layer in layers if which == "all" or id(layer.weight) not in others]
    try:
        for layer in chosen:
            replaced = _replace(model, layers[layer], layer, others)
            linears._replaced.append(replaced)
            if compile_kernels:
                _compile(replaced.packed)
    except Exception as error:
        logger.debug("A linear layer could not be packed.", exc_info=True)
        linears.unpack(f"packing failed ({type(error).__name__}: {error})")
        return linears
    finally:
        _random.cache_clear()
    twice = sum(replaced.kept is not None for replaced in linears._replaced)
    linears.state = "onednn-packed"
    linears.reason = f"{len(chosen)} layers, {twice} of them beside a plain weight used elsewhere"
    compiled = sum(replaced.packed.compiled is not None for replaced in linears._replaced)
    if compiled:
        linears.reason += f"; few rows of {compiled} by our own code"
    logger.info("The linear layers are packed: %s.", linears.reason)
    return linears


def _packable(model: nn.Module) -> dict[nn.Module, list[str]]:
    """The layers to pack, and where in the model they stand."""
    layers: dict[nn.Module, list[str]] = {}
    dtypes = _packable_dtypes()
    for name, layer in model.named_modules(remove_duplicate=False):
        if type(layer) in (nn.Linear, Conv1D) and name and not _is_hooked(layer):
            weight = layer.weight
            if weight.device.type == "cpu" and weight.dtype in dtypes:
                layers.setdefault(layer, []).append(name)
    weights = Counter(id(layer.weight) for layer in layers)
    return {layer: names for layer, names in layers.items() if weights[id(layer.weight)] == 1}


def _packable_dtypes() -> set[torch.dtype]:
    """Those that oneDNN lays out on this CPU: bfloat16 only with AVX-512 or better."""
    knows_bfloat16: Any = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    has_bfloat16 = knows_bfloat16 is not None and knows_bfloat16()
    return {dtype for dtype in _TOLERANCES if has_bfloat16 or dtype != torch.bfloat16}


def _is_hooked(layer: nn.Module) -> bool:
    """Whether something wants to know when the layer is called."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or hasattr(layer, "_hf_hook"))


def _other_weights(model: nn.Module, layers: Collection[nn.Module]) -> set[int]:
    """The ids of all parameters that something beside `layers` uses."""
    return {
        id(parameter)
        for module in model.modules()
        if module not in layers
        for parameter in module.parameters(recurse=False)
    }


def _replace(
    model: nn.Module, names: list[str], layer: nn.Module, others: Collection[int]
) -> _Replaced:
    """Put a packed layer in `layer`'s places, and take its weight from it. Raises ValueError when
    the packed one computes something else."""
    weight: Any = layer.weight
    bias: Any = layer.bias
    reorder: Any = torch.ops.mkldnn._reorder_linear_weight
    with torch.no_grad():
        rows = weight.t().contiguous() if isinstance(layer, Conv1D) else weight.detach()
        packed = PackedLinear(reorder(rows, _ROWS_HINT), bias)
        for count in _TRIED_ROWS:
            _require_equal(names[0], layer, packed, count)
    layer.register_parameter("weight", None)
    _put(model, names, packed)
    return _Replaced(names, layer, packed, weight if id(weight) in others else None)


def _compile(packed: PackedLinear) -> None:
    """Have our own code compute few rows, if it computes the same as oneDNN's."""
    compiled = compiled_linear(packed.weight, packed.bias)
    if compiled is None:
        return
    counts = [rows for rows in _COMPILED_ROWS if rows <= compiled.most_rows]
    x = _random(max(counts), packed.in_features, packed.weight.dtype)
    expected = packed(x)  # once for all: at load this is a pass over all weights
    errors = (_error(compiled(x[:rows]), expected[:rows]) for rows in counts)
    if all(error <= _TOLERANCES[x.dtype] for error in errors):
        packed.compiled = compiled


def _require_equal(name: str, plain: nn.Module, packed: PackedLinear, count: int) -> None:
    x = _random(count, packed.in_features, packed.weight.dtype)
    error = _error(packed(x), plain(x))
    if not error <= _TOLERANCES[packed.weight.dtype]:
        raise ValueError(f"{name} differs from the plain layer by {error:.2g} for {count} rows")


@lru_cache(maxsize=16)
def _random(rows: int, inputs: int, dtype: torch.dtype) -> Tensor:
    """The same for all layers: making it takes longer than multiplying it."""
    random = torch.Generator().manual_seed(rows)
    return torch.randn(rows, inputs, generator=random).to(dtype)


def _error(found: Tensor, expected: Tensor) -> float:
    """The root mean square difference as a share of what is expected: NaN for NaN, and 0 where
    nothing but zeros is expected and found."""
    found, expected = found.float(), expected.float()
    difference = (found - expected).square().mean().sqrt().item()
    size = expected.square().mean().sqrt().item()
    return difference / size if difference else difference


def _unpacked(plain: nn.Module, packed: PackedLinear) -> nn.Parameter:
    rows = packed.weight.to_dense()
    if isinstance(plain, Conv1D):
        rows = rows.t().contiguous()
    return nn.Parameter(rows, requires_grad=False)


def _put(model: nn.Module, names: Iterable[str], layer: nn.Module) -> None:
    for name in names:
        model.set_submodule(name, layer)
