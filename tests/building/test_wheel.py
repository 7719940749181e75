"""The image gets this very package: a given wheel, the checkout's, or a release by number."""

from __future__ import annotations

import os
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from lmtp_replicate import __version__
from lmtp_replicate.building.wheel import own_package
from lmtp_replicate.errors import ConfigError
from tests.building.tiny import write_files

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "lmtp-replicate"
version = "3.2.1"
requires-python = ">=3.11"
[tool.hatch.build.targets.wheel]
packages = ["lmtp_replicate"]
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project of the same name, so that others' edits do not change it under a test."""
    root = write_files(
        tmp_path / "checkout", {"pyproject.toml": PROJECT, "lmtp_replicate/__init__.py": "A = 1"}
    )
    monkeypatch.setattr("lmtp_replicate.building.wheel.checkout_root", lambda: root)
    return root


def test_the_checkouts_wheel_is_the_same_bytes_each_time(checkout: Path) -> None:
    first = own_package(None)
    for path in checkout.rglob("*"):
        os.utime(path, (1e9, 1e9))
    assert own_package(None) == first
    assert first.requirement == "./lmtp_replicate-3.2.1-py3-none-any.whl"
    assert {path.name for path in checkout.iterdir()} == {"pyproject.toml", "lmtp_replicate"}
    (checkout / "lmtp_replicate/__init__.py").write_text("A = 2")
    assert own_package(None) != first


def test_this_projects_wheel_holds_the_template() -> None:
    package = own_package(None)
    assert package.wheel is not None
    names = zipfile.ZipFile(BytesIO(package.wheel[1])).namelist()
    assert {"lmtp_replicate/building/templates/run.py", "lmtp_replicate/cli.py"} <= set(names)


def test_a_given_wheel_is_taken_as_it_is(wheel: Path) -> None:
    package = own_package(wheel)
    assert package.wheel == (wheel.name, wheel.read_bytes())
    assert package.requirement == f"./{wheel.name}"


def test_an_installed_package_is_named_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmtp_replicate.building.wheel.checkout_root", lambda: None)
    package = own_package(None)
    assert package.requirement == f"lmtp-replicate=={__version__}"
    assert package.wheel is None


@pytest.mark.parametrize(
    "name", ["torch-2.0-py3-none-any.whl", "lmtp_replicate.whl", "lmtp_replicate-1.0.tar.gz",
             "lmtp_replicate-1.0 -py3-none-any.whl", "lmtp_replicate-1.0;x-py3-none-any.whl"]
)  # fmt: skip
def test_what_is_no_wheel_of_ours_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match="not that of a wheel of lmtp_replicate"):
        own_package(tmp_path / name)


def test_a_missing_wheel_and_a_broken_checkout_are_explained(
    tmp_path: Path, checkout: Path
) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        own_package(tmp_path / "lmtp_replicate-1.0-py3-none-any.whl")
    (checkout / "pyproject.toml").write_text(PROJECT.replace('["lmtp_replicate"]', '"x"'))
    with pytest.raises(ConfigError, match="could not be built:\n"):
        own_package(None)


def test_missing_build_tools_are_named(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmtp_replicate.building.wheel.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install build hatchling, or give a wheel"):
        own_package(None)
