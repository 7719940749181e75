"""Apply a plan to a work directory, so that an interruption leaves nothing that looks whole.

Without cog.yaml nothing takes a directory for a work directory: neither Cog nor the gateway. So
cog.yaml is put aside before the first change and comes back after the last, and config.json, which
shows whose directory it is, comes first. What is right already is not touched; so the next run
finishes an interrupted one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from lmtp_replicate.building.files import PlannedFile, partial
from lmtp_replicate.building.plan import CHECKPOINTS, WEIGHTS, Plan
from lmtp_replicate.errors import ConfigError

CLAIM = "config.json"
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
        directory.mkdir(parents=True, exist_ok=True)
        return _bring_about(plan, directory)
    except OSError as error:
        raise ConfigError(f"{directory} could not be written: {error}") from error


def _check_place(directory: Path) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ConfigError(f"{directory} is in the way: it is not a directory")
    claim = directory / CLAIM
    if any(p != partial(claim) for p in directory.iterdir()) and not _is_ours(claim):
        raise ConfigError(f"{directory} was not made by this command; move it out of the way")


def _is_ours(claim: Path) -> bool:
    try:
        return {"model", "source", "load"} <= set(json.loads(claim.read_bytes()))
    except (OSError, ValueError, TypeError):
        return False


def _bring_about(plan: Plan, directory: Path) -> list[str]:
    stale = [path for path in _own(directory) if path not in plan]
    changed = {path: file for path, file in plan.items() if not file.stands_at(directory / path)}
    if not stale and not changed:
        return []
    marker = directory / MARKER
    if marker.exists():
        marker.replace(partial(marker))  # where `Content.put` finds it again, unless it changed
    for path in stale:
        if directory / path != partial(marker):
            (directory / path).unlink()
    _remove_empty_folders(directory)
    for path in sorted(changed.keys() - {MARKER}, key=lambda path: path != CLAIM):
        _put(changed[path], directory / path)
    _put(plan[MARKER], marker)
    return sorted({*stale, *changed})


def _put(file: PlannedFile, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file.put(path)


def _own(directory: Path) -> Iterator[str]:
    for folder in _OWN_FOLDERS:
        if (directory / folder).is_symlink():  # what lies behind it is not ours to remove
            yield folder
            continue
        for found, folders, names in os.walk(directory / folder):
            links = [name for name in folders if (Path(found) / name).is_symlink()]
            for name in links + names:
                yield (Path(found) / name).relative_to(directory).as_posix()
    for pattern in _OWN_FILES:
        for path in directory.glob(pattern):
            yield path.relative_to(directory).as_posix()


def _remove_empty_folders(directory: Path) -> None:
    for folder in _OWN_FOLDERS:
        for found, _, _ in os.walk(directory / folder, topdown=False):
            if not any(Path(found).iterdir()):
                Path(found).rmdir()
