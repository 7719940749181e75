"""A work directory as `lmtp-replicate build` makes it: what the gateway must know to run it."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmtp_replicate.errors import ConfigError

COG_FILE = "cog.yaml"
SCHEMA_FILE = Path(".cog") / "openapi_schema.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Model names of Replicate; nothing that could mean something else in a path or a URL."""
_HASHED_WHOLE = 1 << 20
"""Files up to this many bytes count by content in the version id, larger ones by size and mtime."""


@dataclass(frozen=True)
class WorkDirectory:
    """One model: `predictor` is Cog's `file.py:Class`, `slots` how many predictions run at once,
    `environment` what cog.yaml adds to the process, `version` 64 hex digits that change with the
    content, `schema` the OpenAPI schema of its input and output."""

    path: Path
    name: str
    predictor: str
    slots: int
    environment: Mapping[str, str]
    schema: Mapping[str, Any]
    version: str
    created_at: datetime

    @classmethod
    def read(cls, path: Path) -> WorkDirectory:
        """Read and check the directory; ConfigError names what is missing and how to get it."""
        path = path.resolve()
        if not NAME.fullmatch(path.name):
            raise ConfigError(
                f"{path}: {path.name!r} cannot be a model name "
                "(letters, digits, '.', '_' and '-', not starting with a mark)"
            )
        settings = _cog_settings(path / COG_FILE)
        predictor = _predictor(path, settings)
        schema_file = path / SCHEMA_FILE
        return cls(
            path=path,
            name=path.name,
            predictor=predictor,
            slots=_slots(path, settings, predictor),
            environment=_environment(path, settings),
            schema=_schema(schema_file),
            version=version_id(path),
            created_at=datetime.fromtimestamp(schema_file.stat().st_mtime, UTC),
        )


def find_work_directories(paths: Iterable[Path]) -> list[WorkDirectory]:
    """Every path is a work directory or a folder of them; sorted by name.

    Raises ConfigError for a path without any, and for two models of one name.
    """
    found: dict[str, WorkDirectory] = {}
    for path in paths:
        for directory in _candidates(path):
            work = WorkDirectory.read(directory)
            other = found.setdefault(work.name, work)
            if other.path != work.path:
                raise ConfigError(f"{other.path} and {work.path} are both named {work.name!r}")
    return [found[name] for name in sorted(found)]


def _candidates(path: Path) -> list[Path]:
    if (path / COG_FILE).is_file():
        return [path]
    if not path.is_dir():
        raise ConfigError(f"{path}: there is no such directory")
    inside = [child for child in path.iterdir() if (child / COG_FILE).is_file()]
    if not inside:
        raise ConfigError(
            f"{path}: neither a work directory nor a folder of them (no {COG_FILE}); "
            "make one with `lmtp-replicate build`"
        )
    return inside


def version_id(path: Path) -> str:
    """64 hex digits that change when the directory's name or a file in it does.

    Large files (the weights) count by name, size and modification time only, so that this takes
    milliseconds whatever the model's size.
    """
    digest = hashlib.sha256(f"{path.name}\0".encode())
    for file in _files(path):
        stat = file.stat()
        if stat.st_size <= _HASHED_WHOLE:
            content = hashlib.sha256(file.read_bytes()).hexdigest()
        else:
            content = f"{stat.st_size} {stat.st_mtime_ns}"
        digest.update(f"{file.relative_to(path).as_posix()}\0{content}\0".encode())
    return digest.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    for file in sorted(path.rglob("*")):
        if "__pycache__" not in file.parts and file.is_file():
            yield file


def _cog_settings(file: Path) -> Mapping[str, Any]:
    try:
        import yaml  # of the `server` extra; this module must import without it
    except ImportError as error:
        raise ConfigError(
            "running work directories needs more packages: pip install 'lmtp-replicate[server]'"
        ) from error
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; is this a work directory?") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{file}: must be a mapping")
    return settings


def _predictor(path: Path, settings: Mapping[str, Any]) -> str:
    predictor = settings.get("run", settings.get("predict"))  # `predict` is its older name
    if not isinstance(predictor, str) or not re.fullmatch(r"[\w./-]+\.py:\w+", predictor):
        raise ConfigError(f"{path / COG_FILE}: `run` must be like 'run.py:Runner'")
    file = path / predictor.rpartition(":")[0]
    if not file.resolve().is_relative_to(path) or not file.is_file():
        raise ConfigError(f"{path / COG_FILE}: run: {predictor}: there is no {file.name} here")
    return predictor


def _slots(path: Path, settings: Mapping[str, Any], predictor: str) -> int:
    concurrency = settings.get("concurrency")
    slots = concurrency.get("max") if isinstance(concurrency, dict) else None
    if slots is None:
        slots = _decorated_slots(path / predictor.rpartition(":")[0])
    if not isinstance(slots, int) or isinstance(slots, bool) or slots < 1:
        raise ConfigError(f"{path}: the number of concurrent predictions must be positive")
    return slots


def _decorated_slots(file: Path) -> Any:
    """N of `@cog.concurrent(max=N)`, which only `cog build` would otherwise read; 1 without."""
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError as error:
        raise ConfigError(f"{file}:{error.lineno}: {error.msg}") from error
    decorators = [
        decorator
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for decorator in node.decorator_list
    ]
    for call in decorators:
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("concurrent"):
            for keyword in call.keywords:
                if keyword.arg == "max" and isinstance(keyword.value, ast.Constant):
                    return keyword.value.value
    return 1


def _environment(path: Path, settings: Mapping[str, Any]) -> Mapping[str, str]:
    entries = settings.get("environment") or []
    if not isinstance(entries, list) or not all(isinstance(e, str) and "=" in e for e in entries):
        raise ConfigError(f"{path / COG_FILE}: environment must be a list of 'NAME=value'")
    return dict(entry.split("=", 1) for entry in entries)


def _schema(file: Path) -> Mapping[str, Any]:
    try:
        schema = json.loads(file.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{file}: {error.strerror}; make it with `lmtp-replicate build`"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{file}: not JSON: {error}") from error
    try:
        streams = schema["paths"]["/predictions"]["post"]["x-cog-streaming"] is True
        properties = schema["components"]["schemas"]["Input"].get("properties", {})
    except (KeyError, TypeError, AttributeError):
        streams, properties = False, None
    if not streams or not isinstance(properties, dict):
        raise ConfigError(
            f"{file}: must describe components.schemas.Input and set x-cog-streaming: true below "
            "paths./predictions.post, or the Cog runtime refuses to stream"
        )
    assert isinstance(schema, dict)
    return schema
