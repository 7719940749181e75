"""This package as the image gets it: a given wheel, one built from the checkout, or a release."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from lmtp_replicate import __version__
from lmtp_replicate.building.checkout import checkout_root
from lmtp_replicate.errors import ConfigError

# https://packaging.python.org/specifications/binary-distribution-format/#file-name-convention
_WHEEL_NAME = re.compile(r"lmtp_replicate-[\w.+!]+(-[0-9]\w*)?(-[\w.]+){3}\.whl", re.ASCII)

# A fixed date, so that the same source gives the same bytes, and a second build changes nothing.
_SOURCE_DATE_EPOCH = "1577836800"


@dataclass(frozen=True, slots=True)
class OwnPackage:
    """The requirement for this package, and the wheel it names, if any."""

    requirement: str
    wheel: tuple[str, bytes] | None = None
    """File name and content."""

    @classmethod
    def from_wheel(cls, path: Path) -> OwnPackage:
        """That of a wheel file; ConfigError if it is none of this package."""
        if not _WHEEL_NAME.fullmatch(path.name):
            raise ConfigError(f"{path}: the name is not that of a wheel of lmtp_replicate")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        return cls(f"./{path.name}", (path.name, content))


def own_package(wheel: Path | None) -> OwnPackage:
    """`wheel` if given; else built from the checkout; else the release this is."""
    if wheel is not None:
        return OwnPackage.from_wheel(wheel)
    if (root := checkout_root()) is None:
        return OwnPackage(f"lmtp-replicate=={__version__}")
    with tempfile.TemporaryDirectory(prefix="lmtp-replicate-wheel-") as scratch:
        return OwnPackage.from_wheel(_build(root, Path(scratch)))


def _build(root: Path, scratch: Path) -> Path:
    if not (find_spec("build") and find_spec("hatchling")):
        raise ConfigError(
            "building this checkout's wheel needs the packages build and hatchling: "
            "pip install build hatchling, or give a wheel with --wheel"
        )
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    done = subprocess.run(
        [*command, "--outdir", str(scratch), str(root)],
        env={"SOURCE_DATE_EPOCH": _SOURCE_DATE_EPOCH} | os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stdout + done.stderr).strip()[-2000:]
        raise ConfigError(f"the wheel of {root} could not be built:\n{reason}")
    return next(scratch.glob("*.whl"))
