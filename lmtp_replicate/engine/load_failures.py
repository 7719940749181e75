"""transformers' many ways to fail, as one error that says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lmtp_replicate.errors import ModelLoadError

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@contextmanager
def translated(model: str) -> Iterator[None]:
    """Turn whatever loading `model` raises into ModelLoadError."""
    try:
        yield
    except ModelLoadError:
        raise
    except (Exception, MemoryError) as error:
        raise ModelLoadError(f"{model}: {_explanation(error)}") from error


def _explanation(error: Exception) -> str:
    text = str(error)
    if _is_out_of_memory(error, text):
        return (
            'does not fit into memory; use quantize = "8bit" or "4bit", a 16-bit dtype, or '
            'device_map = "auto" on a machine with several GPUs'
        )
    if "trust_remote_code" in text:
        return (
            "comes with Python code of its own, which is not run unless trust_remote_code is true; "
            "read that code first"
        )
    if isinstance(error, OSError) and "no file named" in text.lower():
        return (
            "has no safetensors weights; convert it, or set allow_pickle to true if you trust its "
            "source (opening .bin files can run code)"
        )
    if "Unrecognized configuration class" in text:
        return "is not a causal language model that transformers can load"
    if "bitsandbytes" in text:
        return f"cannot be quantised here; bitsandbytes is missing or unsupported: {_short(text)}"
    unexpected = re.search(r"unexpected keyword argument '(\w+)'", text)
    if isinstance(error, TypeError) and unexpected:
        return f"model_args.{unexpected[1]}: the model does not know this argument"
    return f"cannot be loaded: {_short(text) or type(error).__name__}"


def _is_out_of_memory(error: Exception, text: str) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in text for sign in _OUT_OF_MEMORY)


def _short(text: str) -> str:
    """The first line with anything in it, at most 300 characters."""
    return next((line.strip()[:300] for line in text.splitlines() if line.strip()), "")
