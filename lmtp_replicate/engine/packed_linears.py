"""Linear layers whose weights have been laid out once, for models on a CPU.

torch's own layers hand a row-major matrix to MKL or oneDNN, which rearranges it at each call or
multiplies it as it lies. oneDNN can be given the matrix in the layout its kernels read: torch's
compiler does so when it freezes a model, by the two operators used here. They are private to
torch. So every layer is tried on its real weight before it takes the plain one's place, and all of
them can be put back: unpacking gives the very same numbers (of whole numbers, 24 bits).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lmtp_replicate.engine.compiled_linear import compiled_linear
from lmtp_replicate.engine.digit_linear import digit_linear
from lmtp_replicate.engine.hooks import is_hooked
from lmtp_replicate.engine.laid_out_linear import LaidOutLinear
from lmtp_replicate.engine.linear_check import TOLERANCES, equals, errors, forget_inputs
from lmtp_replicate.engine.linears import Linears, rows_of
from lmtp_replicate.engine.options import PackLinears
from lmtp_replicate.engine.packed_linear import PackedLinear
from lmtp_replicate.engine.sixteen_bit_linear import (
    BFloat16Linear,
    SixteenBitLinear,
    sixteen_bit_kind,
)
from lmtp_replicate.engine.three_byte_linear import three_byte_linear

logger = logging.getLogger(__name__)

_ROWS_HINT = 32
"""Number of rows the layout is chosen for; it serves all others as well."""
_TRIED_ROWS = (1, 7, 40)
_COMPILED_ROWS = (*range(1, 14), 31, 40, 96, 290)
"""The same for our own code, whose tiles have up to six rows, or sixteen, and whose panels 48, 96
or 256."""


def pack_linears(model: nn.Module, which: PackLinears, *, compile_kernels: bool = True) -> Linears:
    """Replace the linear layers of `model` that are on a CPU by packed ones, and with
    `compile_kernels` have our own code compute few rows of them, or, where it is no slower, all.

    Only layers of exactly torch's and transformers' own classes: what is derived from them
    (bitsandbytes, LoRA) computes something else. A plain weight is freed as soon as it is packed,
    unless something else uses it too, as the input embeddings use a tied head's; "untied" leaves
    such layers as they are. If one layer does not equal its plain one, all stay plain.
    """
    linears = Linears(model, "plain", "as asked")
    if which == "none":
        return linears
    layers = _packable(model, compile_kernels=compile_kernels)
    if not layers:
        linears.reason = "none that can be packed"
        return linears
    others = _other_weights(model, layers)
    chosen = [layer for layer in layers if which == "all" or id(layer.weight) not in others]
    try:
        kinds = _sixteen_bit_kinds(chosen) if compile_kernels else {}
        for layer in chosen:
            names, kind = layers[layer], kinds.get(_weight(layer).dtype)
            packed = _packed(names[0], layer, kind, compile_kernels=compile_kernels)
            linears.replace(names, layer, packed, others)
    except Exception as error:
        logger.debug("A linear layer could not be packed.", exc_info=True)
        linears.unpack(f"packing failed ({type(error).__name__}: {error})")
        return linears
    finally:
        forget_inputs()
    linears.describe()
    return linears


def _packable(model: nn.Module, *, compile_kernels: bool) -> dict[nn.Module, list[str]]:
    """The layers to pack, and where in the model they stand."""
    layers: dict[nn.Module, list[str]] = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        if type(layer) in (nn.Linear, Conv1D) and name and not is_hooked(layer):
            weight = _weight(layer)
            if weight.device.type == "cpu" and _is_known(weight, compile_kernels=compile_kernels):
                layers.setdefault(layer, []).append(name)
    weights = Counter(id(layer.weight) for layer in layers)
    return {layer: names for layer, names in layers.items() if weights[id(layer.weight)] == 1}


def _is_known(weight: Tensor, *, compile_kernels: bool) -> bool:
    """Whether a weight of that dtype can be laid out on this CPU: bfloat16 by us, where oneDNN's
    layers would be slow."""
    if weight.dtype != torch.bfloat16:
        return weight.dtype in TOLERANCES
    ours = BFloat16Linear.kernel(weight.dtype) if compile_kernels else None
    return ours is not None or onednn_packs_bfloat16()


def onednn_packs_bfloat16() -> bool:
    """Only with AVX-512 or better."""
    is_supported: Any = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return is_supported is not None and bool(is_supported())


def _other_weights(model: nn.Module, layers: Collection[nn.Module]) -> set[int]:
    """The ids of all parameters that something beside `layers` uses."""
    return {
        id(parameter)
        for module in model.modules()
        if module not in layers
        for parameter in module.parameters(recurse=False)
    }


def _packed(
    name: str, layer: nn.Module, kind: type[SixteenBitLinear] | None, *, compile_kernels: bool
) -> PackedLinear:
    """What takes the place of `layer`. Raises ValueError when that computes something else."""
    ours = _laid_out(layer, kind) if compile_kernels else None
    if ours is not None:
        return ours
    packed = _pack(name, layer)
    if compile_kernels:
        _compile(packed)
    return packed


def _sixteen_bit_kinds(
    layers: Iterable[nn.Module],
) -> dict[torch.dtype, type[SixteenBitLinear] | None]:
    """In which 16 bits, if in any, the layers of each dtype are."""
    weights = [_weight(layer) for layer in layers]
    dtypes = {weight.dtype for weight in weights}
    return {dtype: sixteen_bit_kind([w for w in weights if w.dtype == dtype]) for dtype in dtypes}


def _laid_out(layer: nn.Module, kind: type[SixteenBitLinear] | None) -> LaidOutLinear | None:
    """`layer` in a layout of our own, where that is possible and computes the same."""
    bias: Any = layer.bias
    rows = _rows_of(layer)
    ours: LaidOutLinear | None
    if kind is not None:
        ours = kind.of(rows, bias)
    else:
        ours = digit_linear(rows, bias) or three_byte_linear(rows, bias)
    return ours if ours is not None and equals(ours, layer, ours, ours.tried_rows) else None


def _pack(name: str, layer: nn.Module) -> PackedLinear:
    """`layer` with its weight in oneDNN's layout. Raises ValueError when that computes something
    else."""
    bias: Any = layer.bias
    reorder: Any = torch.ops.mkldnn._reorder_linear_weight
    packed = PackedLinear(reorder(_rows_of(layer), _ROWS_HINT), bias)
    for rows, error in errors(packed, layer, packed, _TRIED_ROWS):
        if not error <= TOLERANCES[packed.weight.dtype]:
            raise ValueError(f"{name} differs from the plain layer by {error:.2g} for {rows} rows")
    return packed


def _weight(layer: nn.Module) -> Tensor:
    weight: Any = layer.weight
    plain: Tensor = weight.detach()
    return plain


def _rows_of(layer: nn.Module) -> Tensor:
    """The layer's weight, `[out_features, in_features]`."""
    return rows_of(_weight(layer), layer)


def _compile(packed: PackedLinear) -> None:
    """Have our own code compute what rows it takes, if it computes the same as oneDNN's."""
    compiled = compiled_linear(packed.weight, packed.bias)
    if compiled is None:
        return
    counts = [rows for rows in _COMPILED_ROWS if rows <= compiled.kernel.most_rows]
    if equals(compiled, packed, packed, counts):
        packed.compiled = compiled
