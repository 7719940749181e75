"""What the image installs, to the exact version."""

from __future__ import annotations

PYTHON = "3.11"
"""The image's Python: the one the versions below were tested with."""

COG_SDK = "0.23.1"
"""Cog's runtime in the image. Streaming, concurrency and cancelling depend on it. It is set in
cog.yaml: Cog drops `cog` from a requirements file, with a warning."""

# torch is the newest that the cog command line knows a CUDA image for; all others are the versions
# that the tests of this package run with (a test compares them).
PINS = {
    "torch": "2.11.0",
    "transformers": "5.23.0",
    "tokenizers": "0.23.3",
    "accelerate": "1.15.0",
    "bitsandbytes": "0.50.2",
    "safetensors": "0.8.0",
    "sentencepiece": "0.2.3",
    "huggingface_hub": "2.4.0",
    "numpy": "2.4.6",
    "aiohttp": "3.14.5",
    "msgpack": "1.2.4",
    "pydantic": "2.14.3",
    "PyYAML": "6.0.3",
}


def requirements(own: str) -> str:
    """The text of requirements.txt; `own` is the requirement for this package itself."""
    return "".join(f"{line}\n" for line in [own, *(f"{k}=={v}" for k, v in PINS.items())])
