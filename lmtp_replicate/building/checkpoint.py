"""Choose the files of a model: one set of weights, and what it needs beside them.

A repository may hold the same weights in many formats. What is chosen here is what transformers
would load from it, in the same order of preference
(``transformers.modeling_utils._get_resolved_checkpoint_files``), and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from lmtp_replicate.errors import ConfigError

_SAFE = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_OTHER_FORMATS = ("*.safetensors", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.pth", "*.pt")

_TEXTS = (
    "*.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "*.model",
    "*.tiktoken",
    "vocab.*",
    "merges.txt",
    "dict.txt",
    "bpe.codes",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
# Another checkpoint's index, training leftovers, and an adapter that transformers would apply.
_NOT_TEXTS = ("*.index.json", "trainer_state.json", "adapter_*")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Chosen files, as POSIX paths relative to the repository, each sorted."""

    weights: tuple[str, ...]
    texts: tuple[str, ...]
    code: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """All of them."""
        return self.weights + self.texts + self.code


def choose(
    names: Collection[str],
    read: Callable[[str], str | bytes],
    *,
    allow_pickle: bool = False,
    remote_code: bool = False,
) -> Checkpoint:
    """The files to take from a repository that holds `names`.

    `read` gives a file's content; only the index of sharded weights is asked for. Pickled weights
    are taken only with `allow_pickle` and where there are no safetensors, Python files only with
    `remote_code`. Raises ConfigError that says why a repository cannot be used.
    """
    names = {name for name in names if _is_plain(name)}
    _check_model(names)
    weights, index = _weights(names, read, allow_pickle)
    texts = {name for name in names if _matches(name, _TEXTS) and not _matches(name, _NOT_TEXTS)}
    code = {name for name in names if remote_code and fnmatchcase(name, "*.py") and "/" not in name}
    return Checkpoint(
        weights=tuple(sorted(weights)),
        texts=tuple(sorted(texts | index)),
        code=tuple(sorted(code)),
    )


def _is_plain(name: str) -> bool:
    """Whether a path stays below the folder it is put in; a Hub's answer may hold anything."""
    return not {"", ".", ".."} & set(name.split("/"))


def _matches(name: str, patterns: Collection[str]) -> bool:
    """Whether a path matches a pattern in which `*` does not stand for folders."""
    depth = name.count("/")
    return any(pattern.count("/") == depth and fnmatchcase(name, pattern) for pattern in patterns)


def _check_model(names: Collection[str]) -> None:
    if "config.json" in names:
        return
    if "adapter_config.json" in names:
        raise ConfigError("holds only an adapter; merge it into its base model first")
    folders = sorted(str(PurePosixPath(n).parent) for n in names if n.endswith("/config.json"))
    hint = f"; its folders {', '.join(folders)} have one: name that folder" if folders else ""
    raise ConfigError(f"has no config.json, so it is not a transformers model{hint}")


def _weights(
    names: Collection[str], read: Callable[[str], str | bytes], allow_pickle: bool
) -> tuple[set[str], set[str]]:
    """Weight files, and the index that names them (or nothing)."""
    for single, index in (_SAFE, _PICKLED) if allow_pickle else (_SAFE,):
        if single in names:
            return {single}, set()
        if index in names:
            return _shards(index, read(index), names), {index}
    if any(name in names for name in _PICKLED):
        raise ConfigError(
            "has only pickled weights, which can run any code when they are loaded; "
            "if you trust them, set config.allow_pickle = true"
        )
    others = sorted(name for name in names if any(fnmatchcase(name, p) for p in _OTHER_FORMATS))
    found = f" (found {', '.join(others[:3])})" if others else ""
    raise ConfigError(f"has no model.safetensors, whole or in shards with an index{found}")


def _shards(index: str, text: str | bytes, names: Collection[str]) -> set[str]:
    try:
        shards = set(json.loads(text)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{index} is not an index of shards: {error!r}") from error
    if missing := sorted(str(shard) for shard in shards if shard not in names):
        raise ConfigError(f"is incomplete: {index} names {', '.join(missing[:3])}, not found")
    if not shards:
        raise ConfigError(f"{index} names no shard")
    return shards
