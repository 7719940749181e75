"""Tiny model repositories and configurations, made by hand: bytes in the right places."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

from lmtp_replicate.building import BuildConfig


def safetensors(value: float = 1.0) -> bytes:
    """A safetensors file that holds one number."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + struct.pack("<f", value)


def index(*shards: str) -> str:
    """The index of weights in these shards."""
    return json.dumps({"metadata": {}, "weight_map": {f"w{i}": s for i, s in enumerate(shards)}})


def write_files(directory: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return directory


MODEL: Mapping[str, str | bytes] = {
    "config.json": '{"model_type": "llama"}',
    "tokenizer.json": "{}",
    "model.safetensors": safetensors(),
}


def config_file(directory: Path, text: str) -> BuildConfig:
    """`text` as directory/config.toml, loaded."""
    (directory / "config.toml").write_text(text)
    return BuildConfig.load(directory / "config.toml")


def tree(directory: Path) -> dict[str, tuple[int, int]]:
    """Inode and modification time of everything below a directory, folders included."""
    found = {}
    for path in sorted(directory.rglob("*")):
        stat = path.lstat()
        found[path.relative_to(directory).as_posix()] = (stat.st_ino, stat.st_mtime_ns)
    return found
