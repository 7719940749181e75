"""Where a model's files come from: a directory, or the Hugging Face Hub at one commit."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from glob import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from lmtp_replicate.errors import ConfigError, TransportError

logger = logging.getLogger(__name__)


class Repository(Protocol):
    """A model's files. Names are POSIX paths relative to it."""

    @property
    def name(self) -> str:
        """What to call it: a Hub id, or a directory's last part."""

    @property
    def commit(self) -> str | None:
        """The commit all files are of; None where there are no commits."""

    def names(self) -> Collection[str]:
        """All its files."""

    def fetch(self, names: Collection[str]) -> dict[str, Path]:
        """Local paths of the named files, downloaded where they are missing."""


class DirectoryRepository:
    """A directory on this machine; hidden files and folders in it do not count."""

    commit = None

    def __init__(self, directory: Path) -> None:
        self.name = directory.name
        self._directory = directory

    def names(self) -> frozenset[str]:
        """All its files."""
        found = set()
        for folder, folders, files in os.walk(self._directory):
            folders[:] = [name for name in folders if not name.startswith(".")]
            relative = Path(folder).relative_to(self._directory)
            found |= {(relative / name).as_posix() for name in files if not name.startswith(".")}
        return frozenset(found)

    def fetch(self, names: Collection[str]) -> dict[str, Path]:
        """Their paths; nothing is copied here."""
        return {name: self._directory / name for name in names}


class HubRepository:
    """A model on the Hugging Face Hub, its revision resolved to a commit once.

    Without a network it is what the local cache holds of that revision. HF_TOKEN, HF_ENDPOINT,
    HF_HOME and HF_HUB_OFFLINE are those of huggingface_hub. Raises ConfigError for a model that
    does not exist or may not be read, TransportError where the Hub cannot be reached.
    """

    def __init__(self, repo: str, revision: str | None) -> None:
        from huggingface_hub import HfApi

        self.name = repo
        with _translated(repo, revision):
            self.commit: str | None = HfApi().resolve_revision(repo, revision=revision).resolved
            self._names = self._list(self.commit)

    def names(self) -> frozenset[str]:
        """All its files at this commit."""
        return self._names

    def fetch(self, names: Collection[str]) -> dict[str, Path]:
        """Paths in the Hub's local cache; missing files are downloaded, with progress on stderr."""
        from huggingface_hub import snapshot_download

        with _translated(self.name, self.commit):
            folder = Path(
                snapshot_download(
                    self.name,
                    revision=self.commit,
                    allow_patterns=[escape(name) for name in names],
                )
            )
        paths = {name: folder / name for name in names}
        if missing := sorted(name for name, path in paths.items() if not path.exists()):
            raise TransportError(f"{self.name}: could not download {', '.join(missing[:3])}")
        return paths

    def _list(self, commit: str) -> frozenset[str]:
        from huggingface_hub import HfApi, try_to_load_from_cache
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        try:
            info = HfApi().model_info(self.name, revision=commit)
        except HfHubHTTPError:  # the Hub did answer
            raise
        except (OfflineModeIsEnabled, _http_error()) as error:
            cached = try_to_load_from_cache(self.name, "config.json", revision=commit)
            if not isinstance(cached, str):
                raise
            logger.warning("%s: no answer from the Hub (%s); using its cache", self.name, error)
            return DirectoryRepository(Path(cached).parent).names()
        return frozenset(file.rfilename for file in info.siblings or [])


def open_repository(repo: str | Path, revision: str | None) -> Repository:
    """The repository that config.toml names: a directory (a Path) or a Hub id (a str)."""
    if isinstance(repo, Path):
        return DirectoryRepository(repo)
    if find_spec("huggingface_hub") is None:
        raise ConfigError(
            "downloading from the Hub needs huggingface_hub: pip install 'lmtp-replicate[server]'"
        )
    return HubRepository(repo, revision)


def _http_error() -> type[Exception]:
    """Base of the errors of the HTTP library that the installed huggingface_hub uses."""
    from huggingface_hub import errors

    base: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    return base


@contextmanager
def _translated(repo: str, revision: str | None) -> Iterator[None]:
    """The Hub's errors as ours, with what to do about them."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise ConfigError(f"this cannot be a Hugging Face id: {error}") from error
    except errors.GatedRepoError as error:
        raise ConfigError(
            f"gated: accept its terms at https://huggingface.co/{repo}, "
            "and set HF_TOKEN to a token of your account"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ConfigError(
            "the Hub knows no such model (or it is private: set HF_TOKEN), "
            "and there is no such directory"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(f"there is no revision {revision!r}: see huggingface.version") from error
    except errors.HfHubHTTPError as error:
        raise TransportError(f"{repo}: the Hub answered with an error: {error}") from error
    except (
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        errors.RevisionResolutionError,
        _http_error(),
    ) as error:
        raise TransportError(
            f"{repo}: the Hub cannot be reached, and the local cache lacks (parts of) the model: "
            f"{error}"
        ) from error
