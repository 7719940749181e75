"""The kinds of file in a work directory. Each knows when it is in place, and how to get there.

A file appears under its own name only when it is whole: it is made under a temporary one first.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

logger = logging.getLogger(__name__)


def partial(path: Path) -> Path:
    """The name `path` has while it is being made."""
    return path.with_name(f".{path.name}.partial")


class PlannedFile(Protocol):
    """One file of a plan."""

    def stands_at(self, path: Path) -> bool:
        """Whether `path` is this file already."""

    def put(self, path: Path) -> None:
        """Make `path` this file, replacing what is there."""


@dataclass(frozen=True, slots=True)
class Content:
    """A file of known content: a copy of its own, which can be edited without harm elsewhere."""

    data: bytes
    executable: bool = False

    def stands_at(self, path: Path) -> bool:
        """Same bytes, same permission to run."""
        return (
            path.is_file()
            and not path.is_symlink()
            and os.access(path, os.X_OK) == self.executable
            and path.stat().st_size == len(self.data)
            and path.read_bytes() == self.data
        )

    def put(self, path: Path) -> None:
        """Write it; an identical temporary file is used as it is (see `workdir`)."""
        temporary = partial(path)
        if not self.stands_at(temporary):
            temporary.unlink(missing_ok=True)
            temporary.write_bytes(self.data)
            temporary.chmod(0o755 if self.executable else 0o644)
        temporary.replace(path)


@dataclass(frozen=True, slots=True)
class Weights:
    """Large data, linked from where it is so that it needs no second place on the disk."""

    source: Path

    def stands_at(self, path: Path) -> bool:
        """The same file, or a copy by size and time, which is how `put` leaves one."""
        if path.is_symlink() or not path.is_file():
            return False
        ours, theirs = path.stat(), self.source.stat()
        return os.path.samestat(ours, theirs) or (
            (ours.st_size, ours.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns)
        )

    def put(self, path: Path) -> None:
        """A hard link, or a copy where there can be none (another disk, no permission)."""
        temporary = partial(path)
        temporary.unlink(missing_ok=True)
        # The Hub's cache holds symbolic links to its blobs: link what they lead to.
        source = self.source.resolve()
        try:
            temporary.hardlink_to(source)
        except OSError as error:
            logger.info("%s: copied, since it cannot be linked (%s)", path.name, error.strerror)
            shutil.copy2(source, temporary)
        temporary.replace(path)


@dataclass(frozen=True, slots=True)
class Pointer:
    """A symbolic link to another file of the plan."""

    target: str

    def stands_at(self, path: Path) -> bool:
        """A link with the same target."""
        return path.is_symlink() and str(path.readlink()) == self.target

    def put(self, path: Path) -> None:
        """Make the link."""
        temporary = partial(path)
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(self.target)
        temporary.replace(path)
