"""Every side by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.environments import RECIPES, install, python_of
from benchmarks.sides.servers import OurServer, UpstreamServer
from benchmarks.sides.side import Side
from benchmarks.sides.worker import WorkerSide

Maker = Callable[[Path, str, Path], Side]

OURS = "ours"
"""The side that the others are compared with."""
UPSTREAM = "upstream"

MAKERS: dict[str, Maker] = {
    OURS: lambda folder, dtype, logs: OurServer(OURS, folder, dtype, logs),
    "ours-lmql-client": lambda folder, dtype, logs: OurServer(
        "ours-lmql-client", folder, dtype, logs, has_upstream_client=True
    ),
    UPSTREAM: lambda folder, dtype, logs: UpstreamServer(UPSTREAM, folder, dtype, logs),
    "generate": lambda folder, dtype, logs: WorkerSide(
        "generate", "generate_worker.py", [str(folder), dtype], logs
    ),
    "continuous-batching": lambda folder, dtype, logs: WorkerSide(
        "continuous-batching", "batching_worker.py", [str(folder), dtype], logs
    ),
    "floor": lambda folder, dtype, logs: WorkerSide(
        "floor", "floor_worker.py", [str(folder), dtype, "plain"], logs
    ),
    "packed-floor": lambda folder, dtype, logs: WorkerSide(
        "packed-floor", "floor_worker.py", [str(folder), dtype, "packed"], logs
    ),
    "llama.cpp": lambda folder, dtype, logs: WorkerSide(
        "llama.cpp", "llama_worker.py", [str(folder), dtype], logs, install("llama.cpp")
    ),
    "vllm": lambda folder, dtype, logs: WorkerSide(
        "vllm", "vllm_worker.py", [str(folder), dtype], logs, install("vllm")
    ),
}
PEERS = tuple(RECIPES)
"""Sides with a venv of their own, which run only where `--peer` asks for them."""
QUERY_SIDES = (OURS, "ours-lmql-client", UPSTREAM, "floor", "packed-floor")
"""Those that can do what LMQL asks for."""


def why_not(peer: str) -> str:
    """Why a peer that was not asked for did not run."""
    installed = "installed, but " if python_of(peer) else "not installed and "
    return f"{installed}not asked for (--peer {peer})"
