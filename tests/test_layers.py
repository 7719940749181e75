"""Imports point down the layers, and the client never imports torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "lmtp_replicate"
TOP = {"errors": 0, "protocol": 1, "engine": 2, "client": 2, "lmql": 3, "serving": 3, "gateway": 3}
TOP |= {"building": 3, "demo": 4, "__init__": 4, "cli": 5, "__main__": 6}


def layer(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imported_layers(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name.split(".")[1] for name in names if name.startswith("lmtp_replicate.")}
    return {name if name in TOP else "__init__" for name in ours}


def test_imports_point_down_the_layers() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        if "templates" in path.parts:
            continue
        mine = layer(path)
        wrong += [
            f"{path.relative_to(PACKAGE)} imports {other}"
            for other in imported_layers(path) - {mine, "__init__"}
            if TOP[other] >= TOP[mine]
        ]
    assert wrong == []


def test_the_client_needs_only_its_own_dependencies() -> None:
    """A clean process in which everything of the extras is missing."""
    code = """
import sys
for name in ("torch", "transformers", "lmql", "cog", "bitsandbytes", "accelerate", "yaml", "numpy"):
    sys.modules[name] = None
import lmtp_replicate
import lmtp_replicate.cli
lmtp_replicate.cli.parser().parse_args(["gateway", "work"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
