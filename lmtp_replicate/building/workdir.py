"""Apply a plan to a work directory, so that an interruption leaves nothing that looks whole.

A new directory is made under a temporary name and renamed when it is complete. In an existing one,
cog.yaml, without which nothing takes it for a work directory, is put aside before the first change
and comes back after the last. What is right already is not touched; so an interrupted run is
finished by the next one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lmtp_replicate.building.files import PlannedFile, partial
from lmtp_replicate.building.plan import CHECKPOINTS, WEIGHTS, Plan
from lmtp_replicate.errors import ConfigError

MARKER = "cog.yaml"

# What an earlier plan may have put here and this one does not. Other files are the user's.
_OWN_FOLDERS = (CHECKPOINTS, WEIGHTS)
_OWN_FILES = ("push", "lmtp_replicate-*.whl", ".*.partial", ".cog/.*.partial")


def apply(plan: Plan, directory: Path) -> list[str]:
    """Make `directory` what `plan` says; the relative paths that changed, none if up to date.

    Raises ConfigError where `directory` is something else, or cannot be written.
    """
    _check_place(directory)
    try:
        if directory.exists():
            return _bring_about(plan, directory)
        draft = partial(directory)
        draft.mkdir(parents=True, exist_ok=True)
        _bring_about(plan, draft)
        draft.rename(directory)
        return sorted(plan)
    except OSError as error:
        raise ConfigError(f"{directory} could not be written: {error}") from error


def _check_place(directory: Path) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ConfigError(f"{directory} is in the way: it is not a directory")
    if any(directory.iterdir()) and not (directory / "config.json").is_file():
        raise ConfigError(f"{directory} was not made by this command; move it out of the way")


def _bring_about(plan: Plan, directory: Path) -> list[str]:
    stale = [path for path in _own(directory) if path not in plan]
    changed = {path: file for path, file in plan.items() if not file.stands_at(directory / path)}
    if not stale and not changed:
        return []
    marker = directory / MARKER
    if marker.exists():
        marker.replace(partial(marker))
    for path in stale:
        if path != partial(Path(MARKER)).name:
            (directory / path).unlink()
    for path, file in changed.items():
        if path != MARKER:
            _put(file, directory / path)
    _remove_empty_folders(directory)
    _put(plan[MARKER], marker)
    return sorted({*stale, *changed})


def _put(file: PlannedFile, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file.put(path)


def _own(directory: Path) -> Iterator[str]:
    for folder in _OWN_FOLDERS:
        for found, _, names in os.walk(directory / folder):
            for name in names:
                yield (Path(found) / name).relative_to(directory).as_posix()
    for pattern in _OWN_FILES:
        for path in directory.glob(pattern):
            yield path.relative_to(directory).as_posix()


def _remove_empty_folders(directory: Path) -> None:
    for folder in _OWN_FOLDERS:
        for found, _, _ in os.walk(directory / folder, topdown=False):
            if not any(Path(found).iterdir()):
                Path(found).rmdir()
