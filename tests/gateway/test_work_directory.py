"""What the gateway reads from a work directory, and what it refuses."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import aiohttp
import pytest

from lmtp_replicate.errors import ConfigError
from lmtp_replicate.gateway.gateway import Gateway
from lmtp_replicate.gateway.work_directory import (
    WorkDirectory,
    find_work_directories,
    version_id,
)
from tests.gateway.toys import TEXT, make_toy


def test_a_folder_and_a_directory(tmp_path: Path) -> None:
    make_toy(tmp_path / "work" / "b")
    make_toy(tmp_path / "work" / "a")
    (tmp_path / "work" / "notes").mkdir()
    single = make_toy(tmp_path / "single-1.0")
    found = find_work_directories([tmp_path / "work", single, single])
    assert [work.name for work in found] == ["a", "b", "single-1.0"]
    assert {work.slots for work in found} == {4}


def test_settings_of_cog_yaml(tmp_path: Path) -> None:
    yaml = "predict: run.py:Runner\nconcurrency: {max: 7}\nenvironment: [A=b=c]\n"
    work = WorkDirectory.read(make_toy(tmp_path / "toy", cog_yaml=yaml))
    assert (work.slots, work.predictor, work.environment) == (7, "run.py:Runner", {"A": "b=c"})


def test_one_slot_without_the_decorator(tmp_path: Path) -> None:
    source = TEXT.replace("    @concurrent(max=4)\n", "")
    assert WorkDirectory.read(make_toy(tmp_path / "toy", source)).slots == 1


def test_the_version_follows_the_content(toy: Path) -> None:
    version = version_id(toy)
    assert len(version) == 64
    assert set(version) <= set("0123456789abcdef")
    os.utime(toy / "run.py", (1, 1))
    (toy / "__pycache__").mkdir()
    (toy / "__pycache__" / "run.pyc").touch()
    assert version_id(toy) == version
    (toy / "run.py").write_text(TEXT + "#")
    assert version_id(toy) != version


def test_equal_content_under_two_names_is_two_versions(tmp_path: Path) -> None:
    directories = [make_toy(tmp_path / name) for name in ("a", "b")]
    assert len({version_id(directory) for directory in directories}) == 2


def test_large_files_count_by_size_and_time(toy: Path) -> None:
    weights = toy / "weights.safetensors"
    weights.write_bytes(b"a" * (2 << 20))
    os.utime(weights, (1, 1))
    version = version_id(toy)
    weights.write_bytes(b"b" * (2 << 20))
    os.utime(weights, (1, 1))
    assert version_id(toy) == version
    os.utime(weights, (2, 2))
    assert version_id(toy) != version


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("cog.yaml", "run: [", "not YAML"),
        ("cog.yaml", "- a", "must be a mapping"),
        ("cog.yaml", "build: {}", "must be like 'run.py:Runner'"),
        ("cog.yaml", "run: ../run.py:Runner", "there is no run.py"),
        ("cog.yaml", "run: other.py:Runner", "there is no other.py"),
        ("cog.yaml", "run: run.py:Runner\nconcurrency: {max: 0}", "must be positive"),
        ("cog.yaml", "run: run.py:Runner\nconcurrency: {max: true}", "must be positive"),
        ("cog.yaml", "run: run.py:Runner\nenvironment: {A: b}", "list of 'NAME=value'"),
        ("run.py", "def f(:", "run.py:1: "),
        (".cog/openapi_schema.json", "{", "not JSON"),
        (".cog/openapi_schema.json", "[]", "x-cog-streaming"),
        (".cog/openapi_schema.json", '{"paths": {}}', "x-cog-streaming"),
    ],
)
def test_what_is_wrong_is_named(toy: Path, file: str, text: str, complaint: str) -> None:
    (toy / file).write_text(text)
    with pytest.raises(ConfigError, match="(?s)" + complaint.replace("[", r"\[")) as raised:
        WorkDirectory.read(toy)
    assert str(toy) in str(raised.value)


def test_a_missing_schema_says_how_to_make_it(toy: Path) -> None:
    (toy / ".cog" / "openapi_schema.json").unlink()
    with pytest.raises(ConfigError, match="lmtp-replicate build"):
        WorkDirectory.read(toy)


def test_missing_packages_are_named(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigError, match=r"pip install 'lmtp-replicate\[server\]'"):
        WorkDirectory.read(toy)


@pytest.mark.parametrize("name", ["-rf", ".hidden", "a b", "ü", "a%2fb", "x" * 129])
def test_names_that_cannot_be_models(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a model name"):
        find_work_directories([make_toy(tmp_path / name)])


def test_places_without_models(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such directory"):
        find_work_directories([tmp_path / "none"])
    with pytest.raises(ConfigError, match="neither a work directory nor a folder of them"):
        find_work_directories([tmp_path])


def test_two_models_of_one_name(tmp_path: Path) -> None:
    make_toy(tmp_path / "a" / "toy")
    make_toy(tmp_path / "b" / "toy")
    with pytest.raises(ConfigError, match="both named 'toy'"):
        find_work_directories([tmp_path / "a", tmp_path / "b"])


def test_bad_owner_token_and_address(toy: Path) -> None:
    with pytest.raises(ConfigError, match="owner"):
        Gateway([toy], owner="a/b")
    with pytest.raises(ConfigError, match="token") as raised:
        Gateway([toy], token="two words")
    assert "two words" not in str(raised.value)


async def test_an_address_in_use(toy: Path) -> None:
    async with Gateway([toy]) as first:
        port = int(first.url.rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            async with Gateway([toy], port=port):
                pass


@pytest.mark.parametrize("port", [-1, 99999])
async def test_a_port_that_is_none(toy: Path, port: int) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
        async with Gateway([toy], port=port):
            pass


async def test_an_ipv6_address(toy: Path) -> None:
    async with (
        Gateway([toy], host="::1") as gateway,
        aiohttp.request("GET", f"{gateway.url}/v1/account") as answer,
    ):
        assert answer.status == 401


async def test_tokens_are_fresh_and_never_shown(toy: Path) -> None:
    async with Gateway([toy]) as one, Gateway([toy]) as other:
        assert one.token != other.token
        assert len(one.token) >= 32
        assert one.token not in repr(one)
