"""Where a model's files are: a local directory, or one commit of a Hub repository."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lmtp_replicate.errors import ModelLoadError

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """source: what transformers' `from_pretrained` takes: a directory or a Hub id. revision: the
    commit, for the Hub; None for a directory."""

    source: str
    revision: str | None

    @property
    def has_tokenizer(self) -> bool:
        """Whether any tokenizer's file comes with the model."""
        return any(self._has(name) for name in _TOKENIZER_FILES)

    def _has(self, name: str) -> bool:
        if self.revision is None:
            return (Path(self.source) / name).is_file()
        cached = try_to_load_from_cache(self.source, name, revision=self.revision)
        if cached is None:
            try:
                hf_hub_download(self.source, name, revision=self.revision)
            except (EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled):
                return False
            return True
        return isinstance(cached, str)


def find_checkpoint(model: str | Path, revision: str | None) -> Checkpoint:
    """The checkpoint that `model` names: an existing directory, else a Hub id. A branch or tag in
    `revision` becomes the commit it stands for now. Raises ModelLoadError."""
    directory = Path(model).expanduser()
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise ModelLoadError(
                f"{directory}: has no config.json; name a directory that holds a model saved by "
                "transformers' save_pretrained"
            )
        return Checkpoint(str(directory), None)
    if isinstance(model, Path) or not _HUB_ID.fullmatch(model) or directory.exists():
        raise ModelLoadError(
            f"{model}: is neither a directory nor a Hub id such as facebook/opt-350m"
        )
    return Checkpoint(model, _commit(model, revision))


def _commit(repo: str, revision: str | None) -> str:
    at = f" at revision {revision!r}" if revision else ""
    try:
        config = hf_hub_download(repo, "config.json", revision=revision)
    except GatedRepoError:
        problem = "is gated; ask for access on its Hub page and set HF_TOKEN to your token"
    except RevisionNotFoundError:
        problem = f"has no revision {revision!r} on the Hub"
    except RepositoryNotFoundError:
        problem = "is not on the Hub, or is private; check the spelling, or set HF_TOKEN"
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        problem = (
            "is not in the local cache and the Hub cannot be reached; check the connection and "
            "HF_HUB_OFFLINE, or name a local directory"
        )
    except EntryNotFoundError:
        problem = "has no config.json, so it is not a transformers model"
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        problem = f"could not be fetched from the Hub: {_first_line(error)}"
    else:
        return Path(config).parent.name
    raise ModelLoadError(f"{repo}{at}: {problem}")


def _first_line(error: Exception) -> str:
    lines: Iterable[str] = filter(None, str(error).splitlines())
    return next(iter(lines), type(error).__name__)
