"""config.toml as a frozen, validated value.

The file is checked as a whole before anything is built; every mistake in it is reported with its
path (``models.demo.huggingface.versoin: unknown key``).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from lmtp_replicate.building.checkout import checkout_root
from lmtp_replicate.engine.options import LoadOptions
from lmtp_replicate.errors import ConfigError, LmtpReplicateError

FILE_NAME = "config.toml"
PLACEHOLDER = "YOURACCOUNT"

# Replicate's rule for model names, narrowed to what a Docker image's name may be
# (https://github.com/distribution/reference: path-component), since `cog push` makes it one.
_MODEL_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_IMAGE_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]+)?(?:/[A-Za-z0-9][A-Za-z0-9._-]*)+")
# https://huggingface.co/docs/hub/repositories: "name" or "owner/name".
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def _checked_name(name: str) -> str:
    if not _MODEL_NAME.fullmatch(name) or len(name) > 100:
        raise ValueError(
            f"{name!r} cannot be a model's name: use at most 100 lowercase letters and digits, "
            "joined by single periods, one or two underscores, or dashes"
        )
    return name


def _checked_prefix(prefix: str) -> str:
    prefix = prefix.rstrip("/")
    if not _IMAGE_PREFIX.fullmatch(prefix):
        raise ValueError(f'{prefix!r} is not a registry and an account, as in "r8.im/me"')
    return prefix


def _options(value: object) -> object:
    """The table `config` as load options; a default is passed through."""
    if not isinstance(value, Mapping):
        return value
    try:
        return LoadOptions.from_model_args(value)
    except LmtpReplicateError as error:
        raise ValueError(str(error)) from error


def _source(value: object, info: ValidationInfo) -> str | Path:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a Hugging Face id or a directory, as a string")
    base: Path = (info.context or {}).get("base", Path())
    path = (base / Path(value).expanduser()).resolve()
    if path.is_dir():
        return path
    if not _HUB_ID.fullmatch(value):
        raise ValueError(f"{value!r} is neither a directory ({path}) nor a Hugging Face id")
    return value


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class HuggingFace(_Table):
    """Where a model comes from: a directory (a Path) or a Hub id (a str), and a Hub revision."""

    repo: Annotated[str | Path, PlainValidator(_source)]
    version: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _check_version(self) -> Self:
        if isinstance(self.repo, Path) and self.version is not None:
            raise ValueError(f"version: {self.repo} is a directory, which has no versions")
        return self


class ModelConfig(_Table):
    """One `[models.NAME]` table."""

    huggingface: HuggingFace
    options: Annotated[LoadOptions, BeforeValidator(_options)] = Field(
        alias="config", default_factory=LoadOptions
    )

    @field_validator("options")
    @classmethod
    def _no_revision(cls, options: LoadOptions) -> LoadOptions:
        if options.revision is not None:
            raise ValueError("revision: use huggingface.version, which pins what is built")
        return options


ModelName = Annotated[str, AfterValidator(_checked_name)]


class BuildConfig(_Table):
    """The whole of config.toml."""

    dest_prefix: Annotated[str, AfterValidator(_checked_prefix)] | None = None
    models: dict[ModelName, ModelConfig] = Field(min_length=1)

    @property
    def destination(self) -> str | None:
        """Registry and account to push to, without a final slash; None if not customised."""
        if self.dest_prefix is None or PLACEHOLDER in self.dest_prefix:
            return None
        return self.dest_prefix

    def select(self, names: Sequence[str]) -> dict[str, ModelConfig]:
        """The named models, or all of them when `names` is empty; ConfigError for an unknown."""
        if unknown := [name for name in names if name not in self.models]:
            raise ConfigError(
                f"config.toml has no model {', '.join(map(repr, unknown))}; "
                f"it has {', '.join(self.models)}"
            )
        return {name: self.models[name] for name in dict.fromkeys(names or self.models)}

    @classmethod
    def load(cls, path: Path) -> BuildConfig:
        """Read and validate a config.toml; directories in it are relative to it.

        Raises ConfigError that lists every mistake with its path in the file.
        """
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path}: {error}") from error
        try:
            return cls.model_validate(data, context={"base": path.resolve().parent})
        except ValidationError as error:
            raise ConfigError(_explain(path, error)) from None


def find_config(explicit: Path | None, directory: Path) -> Path:
    """The config.toml to use: `explicit`, else in `directory`, else in the checkout's root.

    Raises ConfigError that says how to make one.
    """
    if explicit is not None:
        if not explicit.is_file():
            raise ConfigError(f"{explicit}: there is no such file")
        return explicit
    root = checkout_root()
    for folder in (directory, *([root] if root else [])):
        if (folder / FILE_NAME).is_file():
            return folder / FILE_NAME
    example = root / "config.toml.example" if root else Path("config.toml.example")
    raise ConfigError(
        f"there is no {FILE_NAME} in {directory}{f' or {root}' if root else ''}. "
        f"Make one from the example, then edit it: cp {example} {FILE_NAME}"
    )


def _explain(path: Path, error: ValidationError) -> str:
    lines = []
    for detail in error.errors():
        parts = [str(part) for part in detail["loc"] if part != "[key]"]
        lines.append(f"{path}: {'.'.join(parts) or FILE_NAME}: {_reason(detail)}")
    return "\n".join(lines)


def _reason(detail: Mapping[str, Any]) -> str:
    match detail["type"]:
        case "extra_forbidden":
            return 'unknown key (a model\'s name with a period needs quotes: [models."llama-3.1"])'
        case "missing":
            return "is missing"
        case _:
            return str(detail["msg"]).removeprefix("Value error, ")
