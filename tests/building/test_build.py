"""`build` as a user meets it, and the defects of LMQL's own scripts/replicate-build."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmtp_replicate.building import build
from lmtp_replicate.building.files import Content
from lmtp_replicate.errors import ConfigError
from tests.building.tiny import MODEL, config_file, safetensors, tree, write_files

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "replicate-build" / "build"
ONE = "[models.demo]\nhuggingface.repo = 'model'\n"


def run_script(
    cwd: Path, *arguments: str | Path, script: str | Path = SCRIPT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [script, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_build_makes_what_was_asked_for(tmp_path: Path, model: Path, wheel: Path) -> None:
    write_files(tmp_path / "other", MODEL)
    config = config_file(tmp_path, f"{ONE}[models.other]\nhuggingface.repo = 'other'\n")
    work = tmp_path / "work"
    assert build(config, ["other"], work, wheel=wheel) == [work / "other"]
    assert not (work / "demo").exists()
    assert build(config, [], work, wheel=wheel) == [work / "demo", work / "other"]
    assert {path.name for path in (work / "demo").iterdir()} == {
        ".cog", ".dockerignore", "checkpoints", "cog.yaml", "config.json", "requirements.txt",
        "run.py", wheel.name}  # fmt: skip


def test_a_second_build_touches_nothing(tmp_path: Path, model: Path, wheel: Path) -> None:
    config = config_file(tmp_path, ONE)
    build(config, [], tmp_path / "work", wheel=wheel)
    before = tree(tmp_path)
    build(config, [], tmp_path / "work", wheel=wheel)
    assert tree(tmp_path) == before


def test_an_unusable_model_is_named_and_the_others_stay(
    tmp_path: Path, model: Path, wheel: Path
) -> None:
    write_files(tmp_path / "bad", {"config.json": "{}", "model.gguf": b""})
    config = config_file(tmp_path, f"{ONE}[models.bad]\nhuggingface.repo = 'bad'\n")
    with pytest.raises(ConfigError, match=r"^bad: .*/bad: has no model\.safetensors"):
        build(config, [], tmp_path / "work", wheel=wheel)
    assert {path.name for path in (tmp_path / "work").iterdir()} == {".lock", "demo"}


def test_an_unreadable_source_is_explained(tmp_path: Path, model: Path, wheel: Path) -> None:
    (model / "vocab.json").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"^demo: .*/model cannot be read: .*vocab\.json"):
        build(config_file(tmp_path, ONE), [], tmp_path / "work", wheel=wheel)
    (model / "vocab.json").unlink()
    (model / "model.safetensors").unlink()
    write_files(model, {"model.safetensors.index.json": b"\xff\xfe\xff"})
    with pytest.raises(ConfigError, match="is not an index of shards"):
        build(config_file(tmp_path, ONE), [], tmp_path / "work", wheel=wheel)
    assert not (tmp_path / "work" / "demo").exists()


def test_the_hub_without_its_library_is_explained(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmtp_replicate.building.repository.find_spec", lambda _: None)
    config = config_file(tmp_path, "[models.demo]\nhuggingface.repo = 'me/model'")
    with pytest.raises(ConfigError, match=r"pip install 'lmtp-replicate\[server\]'"):
        build(config, [], tmp_path / "work", wheel=wheel)


def test_a_work_directory_is_not_its_own_source(tmp_path: Path, model: Path, wheel: Path) -> None:
    build(config_file(tmp_path, ONE), [], tmp_path / "work", wheel=wheel)
    inside = config_file(tmp_path, ONE.replace("'model'", "'work/demo/checkpoints'"))
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match="part of what is to be built"):
        build(inside, [], tmp_path / "work", wheel=wheel)
    assert tree(tmp_path) == before


def test_two_builds_do_not_write_to_one_place(tmp_path: Path, model: Path, wheel: Path) -> None:
    config = config_file(tmp_path, ONE)
    (tmp_path / "work").mkdir()
    with (tmp_path / "work" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another build is writing"):
            build(config, [], tmp_path / "work", wheel=wheel)
    assert build(config, [], tmp_path / "work", wheel=wheel)


def test_the_script_works_from_its_own_directory(
    tmp_path: Path, model: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a copy of the checkout's layout, as the documentation says: ./build, there."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # the environment has not been activated
    here = tmp_path / "checkout" / "scripts" / "replicate-build"
    here.mkdir(parents=True)
    (here / "build").write_bytes(SCRIPT.read_bytes())
    (here / "build").chmod(0o755)
    bin_directory = tmp_path / "checkout" / ".venv" / "bin"
    write_files(bin_directory, {"python": f'#!/bin/sh\nexec {sys.executable} "$@"\n'})
    (bin_directory / "python").chmod(0o755)
    config_file(here, f"dest_prefix='r8.im/me/'\n[models.demo]\nhuggingface.repo='{model}'")
    first = run_script(here, "--wheel", wheel, script="./build")
    assert first.returncode == 0, first.stderr
    assert "work/demo: made" in first.stderr
    for hint in ("lmtp-replicate predict work/demo -i prompt", "lmtp-replicate gateway work/demo",
                 "cd work/demo && cog run", "cd work/demo && ./push"):  # fmt: skip
        assert hint in first.stdout
    program = next(word for word in first.stdout.split() if word.endswith("lmtp-replicate"))
    assert os.access(program, os.X_OK)
    assert os.access(here / "work/demo/push", os.X_OK)
    assert "work/demo: up to date" in run_script(here, "--wheel", wheel).stderr


def test_the_script_without_an_installation_says_what_to_do(tmp_path: Path) -> None:
    here = tmp_path / "checkout" / "scripts" / "replicate-build"
    here.mkdir(parents=True)
    (here / "build").write_bytes(SCRIPT.read_bytes())
    done = subprocess.run(
        ["/bin/sh", "build"],
        cwd=here,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 127
    assert f"make -C '{tmp_path}/checkout' setup" in done.stderr


def test_building_needs_no_heavy_import() -> None:
    code = """
import sys
for name in ("torch", "transformers", "huggingface_hub", "yaml", "cog", "numpy"):
    sys.modules[name] = None
import lmtp_replicate.building.work, lmtp_replicate.building.build_command
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_configuration_is_a_message(tmp_path: Path) -> None:
    """Upstream: os.exit, an AttributeError."""
    done = run_script(tmp_path, "--config", tmp_path / "none.toml")
    assert done.returncode == 1
    assert done.stderr == f"lmtp-replicate: {tmp_path}/none.toml: there is no such file\n"
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_name_is_found_before_anything_is_made(tmp_path: Path, wheel: Path) -> None:
    """Upstream: the directory first, then the check."""
    (tmp_path / "config.toml").write_text("[models.'a/b']\nhuggingface.repo='x/y'")
    done = run_script(tmp_path, "--wheel", wheel)
    assert done.returncode == 1
    assert "models.a/b: 'a/b' cannot be a model's name" in done.stderr
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("old_key", ["", "config.use_safetensors = true\n"])
def test_one_safetensors_file_is_taken_and_loaded_as_such(
    tmp_path: Path, model: Path, wheel: Path, old_key: str
) -> None:
    """Upstream: without an index, everything was copied and use_safetensors=false written."""
    write_files(model, {"pytorch_model.bin": b"x", "tf_model.h5": b"x", "onnx/model.onnx": b"x"})
    (work,) = build(config_file(tmp_path, ONE + old_key), [], tmp_path / "work", wheel=wheel)
    assert {path.name for path in (work / "checkpoints").rglob("*")} == set(MODEL)
    assert json.loads((work / "config.json").read_text())["load"]["allow_pickle"] is False


def test_a_changed_template_or_model_updates_the_directory(
    tmp_path: Path, model: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upstream: an AttributeError on every rerun after such a change."""
    config = config_file(tmp_path, ONE)
    (work,) = build(config, [], tmp_path / "work", wheel=wheel)
    (tmp_path / "new").write_bytes(safetensors(2))
    (tmp_path / "new").replace(model / "model.safetensors")
    (work / "run.py").write_text("an older template")
    build(config, [], tmp_path / "work", wheel=wheel)
    assert (work / "checkpoints/model.safetensors").read_bytes() == safetensors(2)
    template = ROOT / "lmtp_replicate/building/templates/run.py"
    assert (work / "run.py").read_bytes() == template.read_bytes()


def test_editing_the_work_directory_edits_nothing_else(
    tmp_path: Path, model: Path, wheel: Path
) -> None:
    """Upstream: run.py was the template, and tokenizer.json the cache's."""
    (work,) = build(config_file(tmp_path, ONE), [], tmp_path / "work", wheel=wheel)
    for path in work.rglob("*"):
        if path.is_file() and path.name != "model.safetensors":
            assert path.stat().st_nlink == 1
    assert (work / "checkpoints/model.safetensors").samefile(model / "model.safetensors")


def test_a_changed_configuration_changes_config_json_alone(
    tmp_path: Path, model: Path, wheel: Path
) -> None:
    (work,) = build(config_file(tmp_path, ONE), [], tmp_path / "work", wheel=wheel)
    before = tree(work)
    changed = config_file(tmp_path, ONE + "config.dtype = 'float32'\n")
    build(changed, [], tmp_path / "work", wheel=wheel)
    after = tree(work)
    assert {name for name in after if after[name] != before[name]} == {"config.json"}
    assert Content((work / "config.json").read_bytes()).stands_at(work / "config.json")
