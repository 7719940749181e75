"""Where the demo works, below the current directory, and what it builds there."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from lmtp_replicate.errors import ConfigError

SHIPPED_MODEL = Path(__file__).parent / "model"
NAME = "demo"
_TOKENIZER_FILES = ("tokenizer*", "*token*.json", "vocab*", "merges.txt", "*.model", "*.jinja")


@dataclass(frozen=True)
class Workspace:
    """A folder of its own for each model, so that a second run finds everything built."""

    folder: Path
    #: the model, as config.toml's `huggingface.repo`: an absolute directory or a Hub id
    source: str

    @classmethod
    def of(cls, model: str | None, directory: Path) -> Workspace:
        """The workspace below `directory` for a local directory, a Hub id or (None) our model."""
        local = SHIPPED_MODEL if model is None else Path(model).expanduser()
        source = str(local.resolve()) if local.is_dir() else str(model)
        digest = blake2b(source.encode(), digest_size=4).hexdigest()
        readable = re.sub(r"[^a-z0-9]+", "-", Path(source).name.lower()).strip("-")
        return cls(directory / ".cache" / "lmtp-replicate-demo" / f"{readable}-{digest}", source)

    @property
    def is_offline(self) -> bool:
        """Whether nothing has to come from the Hub."""
        return Path(self.source).is_absolute()

    @property
    def home(self) -> Path:
        """HOME for LMQL, which keeps pickled tokenizers there."""
        return self.folder / "home"

    def prepare(self) -> None:
        """Make the folder and the config.toml. Raises ConfigError where it cannot be written."""
        text = f"[models.{NAME}]\nhuggingface.repo = {json.dumps(self.source)}\n"
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            (self.folder / "config.toml").write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{self.folder} cannot be written: {error}; run the demo in a directory of yours"
            ) from error

    def build(self) -> Path:
        """Build the work directory, as `lmtp-replicate build` does; its path."""
        from lmtp_replicate.building import BuildConfig, build

        config = BuildConfig.load(self.folder / "config.toml")
        return build(config, [NAME], self.folder / "work")[0]

    def tokenizer(self, work_directory: Path) -> Path:
        """A path to the model's tokenizer that changes whenever the tokenizer does.

        LMQL pickles a tokenizer under its path and never looks at the files again, so a retrained
        one at the same path would stay the old one.
        """
        checkpoints = work_directory / "checkpoints"
        files = {path for pattern in _TOKENIZER_FILES for path in checkpoints.glob(pattern)}
        if not files:
            raise ConfigError(f"{self.source} has no tokenizer, and LMQL needs one")
        digest = blake2b(digest_size=8)
        for path in sorted(files):
            digest.update(f"{path.name} {path.stat().st_size} ".encode() + path.read_bytes())
        link = self.folder / "tokenizers" / digest.hexdigest()
        link.parent.mkdir(exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(checkpoints, link.parent), target_is_directory=True)
        return Path(os.path.relpath(link))
