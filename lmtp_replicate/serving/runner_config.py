"""`config.json` of a work directory: which model its runner serves, and how it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from lmtp_replicate.engine.options import LoadOptions
from lmtp_replicate.errors import ConfigError

NAME = "config.json"


class Source(BaseModel):
    """Where the checkpoint came from: a Hub id or a directory, and the commit, if it has one."""

    model_config = ConfigDict(frozen=True)

    repo: str
    revision: str | None = None


class RunnerConfig(BaseModel):
    """`model` is the checkpoint's place, relative to the work directory. Written by `./build`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    source: Source
    load: LoadOptions

    @classmethod
    def read(cls, directory: Path) -> Self:
        """The configuration of a work directory. Raises `ConfigError`, which names the place."""
        path = directory / NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ConfigError(
                f"{path}: {error.strerror}. A work directory is made by `lmtp-replicate build`"
            ) from error
        except ValidationError as error:
            raise ConfigError(f"{path}: {error}. Make it again: `lmtp-replicate build`") from None
