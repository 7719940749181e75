"""In which numbers a model computes: the `dtype` that "auto" stands for, and quantisation."""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lmtp_replicate.engine.options import QUANTIZATION_PREFIXES, LoadOptions
from lmtp_replicate.errors import ModelLoadError

_SIXTEEN_BIT = ("bfloat16", "float16")
_OF_MATRICES = {"amx_bf16", "bf16"}


@dataclass(frozen=True, slots=True)
class Precision:
    """A dtype by name and why it was chosen."""

    dtype: str
    reason: str

    @property
    def torch_dtype(self) -> torch.dtype:
        found = getattr(torch, self.dtype)
        assert isinstance(found, torch.dtype)
        return found


def choose_precision(asked: str, checkpoint: str | None, device: torch.device) -> Precision:
    """The dtype for weights and arithmetic.

    asked: "auto" or a dtype's name. checkpoint: the dtype the checkpoint says it was saved in;
    one that says nothing is taken as float32. "auto" is, on a GPU, the checkpoint's, but bfloat16
    for float32 and float16 where the GPU has no bfloat16; on a CPU float32, but bfloat16 where the
    checkpoint has 16 bits and the CPU multiplies it fast.
    """
    if asked != "auto":
        return Precision(asked, "as asked")
    saved = checkpoint or "float32"
    if device.type == "cuda":
        return _on_gpu(saved, bf16=torch.cuda.is_bf16_supported(including_emulation=False))
    return _on_cpu(saved, fast_bf16=cpu_multiplies_bfloat16())


def _on_gpu(saved: str, *, bf16: bool) -> Precision:
    if saved == "float16":
        return Precision("float16", "the checkpoint's")
    if not bf16:
        return Precision("float16", f"{saved} checkpoint; this GPU has no bfloat16")
    if saved == "bfloat16":
        return Precision("bfloat16", "the checkpoint's")
    return Precision("bfloat16", f"{saved} checkpoint; halves memory and time on a GPU")


def _on_cpu(saved: str, *, fast_bf16: bool) -> Precision:
    if saved not in _SIXTEEN_BIT:
        return Precision("float32", f"{saved} checkpoint on a CPU")
    if fast_bf16:
        return Precision("bfloat16", f"{saved} checkpoint; this CPU multiplies bfloat16 natively")
    return Precision("float32", f"{saved} checkpoint; this CPU has no fast 16-bit arithmetic")


def cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for products of bfloat16 (AVX512-BF16, AMX, or Arm's).

    Asked of the capability, not measured: the answer must be the same at every start. torch 2.11
    and 2.12 do not tell, so the kernel's list of CPU flags is read; without one the answer is no.
    """
    return not _cpu_flags().isdisjoint({"avx512_bf16", *_OF_MATRICES})


def cpu_multiplies_matrices_of_bfloat16() -> bool:
    """Whether some of them multiply whole matrices (AMX or Arm's)."""
    return not _cpu_flags().isdisjoint(_OF_MATRICES)


@cache
def _cpu_flags() -> frozenset[str]:
    """Read once: the list has a line for each of the CPU's threads, and each layer asks."""
    try:
        lines = Path("/proc/cpuinfo").read_text("ascii", "replace").splitlines()
    except OSError:
        return frozenset()
    listings = [line for line in lines if line.startswith(("flags", "Features"))]
    return frozenset(flag for each in listings for flag in each.partition(":")[2].split())


@dataclass(frozen=True, slots=True)
class Quantization:
    """How weights are quantised. name: for people ("4bit", "8bit", or the checkpoint's own
    method). batch_invariant: whether a row's result is known not to depend on its batch mates.
    config: for `from_pretrained`, None when the checkpoint brings its own."""

    name: str | None
    batch_invariant: bool
    config: Any = None


def choose_quantization(
    options: LoadOptions, checkpoint: dict[str, Any] | None, compute: torch.dtype
) -> Quantization:
    """The quantisation asked for, or the checkpoint's own.

    checkpoint: `quantization_config` of the checkpoint's config. compute: dtype of the arithmetic
    on 4-bit weights. Raises ModelLoadError.
    """
    if checkpoint is not None or options.quantize is not None:
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_no_cast)
    if checkpoint is not None:
        if options.quantize is not None:
            raise ModelLoadError(
                f'quantize = "{options.quantize}": the checkpoint is already quantised '
                f"({_method(checkpoint)}); leave quantize out"
            )
        return Quantization(_method(checkpoint), _is_batch_invariant(checkpoint))
    if options.quantize is None:
        return Quantization(None, True)
    config = _bitsandbytes_config(options, compute)
    return Quantization(options.quantize, _is_batch_invariant(config.to_dict()), config)


def _is_no_cast(record: logging.LogRecord) -> bool:
    """In bfloat16 bitsandbytes warns of each product of 8 bits, in every layer and step, that the
    numbers are cast to float16 (MatMul8bitLt.forward in 0.50)."""
    return "inputs will be cast" not in record.getMessage()


def _bitsandbytes_config(options: LoadOptions, compute: torch.dtype) -> Any:
    # Imported here: only a quantised model needs it.
    import transformers

    make: Any = transformers.BitsAndBytesConfig
    if options.quantize == "4bit":
        settings: dict[str, Any] = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": compute,
        }
    else:
        # Any other threshold treats columns as outliers by what the whole batch holds in them.
        settings = {"load_in_8bit": True, "llm_int8_threshold": 0.0}
    known = inspect.signature(make).parameters
    for key, value in options.model_args.items():
        if key.startswith(QUANTIZATION_PREFIXES):
            if key not in known:
                raise ModelLoadError(f"{key}: transformers' BitsAndBytesConfig does not know it")
            settings[key] = value
    try:
        return make(**settings)
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelLoadError(f"quantisation settings: {error}") from None


def _method(config: dict[str, Any]) -> str:
    if config.get("load_in_8bit"):
        return "8bit"
    return "4bit" if config.get("load_in_4bit") else str(config.get("quant_method", "unknown"))


def _is_batch_invariant(config: dict[str, Any]) -> bool:
    if config.get("load_in_8bit"):
        return float(config.get("llm_int8_threshold", 6.0)) == 0.0
    return bool(config.get("load_in_4bit"))
