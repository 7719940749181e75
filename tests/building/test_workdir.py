"""Applying a plan: nothing to do twice, nothing half-made that looks whole, nothing lost."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmtp_replicate.building.files import Content, Pointer, Weights
from lmtp_replicate.building.plan import Plan
from lmtp_replicate.building.workdir import apply
from lmtp_replicate.errors import ConfigError
from tests.building.tiny import tree


def make_plan(store: Path, **changes: Any) -> Plan:
    """A plan like a real one, with weights in `store`; None takes a file out of it."""
    store.mkdir(exist_ok=True)
    for name in ("w1", "w2"):
        if not (store / name).exists():
            (store / name).write_bytes(name.encode() * 50)
    plan = {
        "cog.yaml": Content(b"run: run.py:Runner\n"),
        "config.json": Content(b'{"model": "", "source": {}, "load": {}}'),
        "checkpoints/parts/model-1.safetensors": Weights(store / "w1"),
        "checkpoints/tokenizer.json": Content(b"{}" * 40),
        ".cog/openapi_schema.json": Content(b"{}"),
        "lmtp_replicate-1.0-py3-none-any.whl": Content(b"PK"),
        "push": Content(b"#!/bin/sh\n", executable=True),
        "run.py": Content(b"class Runner: ...\n"),
    } | changes
    return {name: file for name, file in plan.items() if file is not None}


CHANGES: dict[str, Any] = {
    "run.py": Content(b"class Runner: pass\n"),
    "push": None,
    "lmtp_replicate-1.0-py3-none-any.whl": None,
    "lmtp_replicate-1.1-py3-none-any.whl": Content(b"PK2"),
    "checkpoints/parts/model-1.safetensors": None,
    "checkpoints/parts": Content(b"a file where a folder was"),
}


def second_plan(store: Path) -> Plan:
    link = {"checkpoints/model.safetensors": Pointer("../weights/model.safetensors")}
    weights = {"weights/model.safetensors": Weights(store / "w2")}
    return make_plan(store, **CHANGES, **link, **weights)


def holds(directory: Path, plan: Plan) -> bool:
    """Whether the directory is exactly what the plan says."""
    found = {
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
    return found == set(plan) and all(f.stands_at(directory / p) for p, f in plan.items())


def test_a_directory_is_made_and_the_second_time_nothing_is_touched(tmp_path: Path) -> None:
    plan, work = make_plan(tmp_path / "store"), tmp_path / "work" / "demo"
    assert apply(plan, work) == sorted(plan)
    assert holds(work, plan)
    before = tree(tmp_path)
    assert apply(plan, work) == []
    assert tree(tmp_path) == before


def test_only_what_changed_is_touched(tmp_path: Path) -> None:
    store, work = tmp_path / "store", tmp_path / "demo"
    apply(make_plan(store), work)
    before = tree(work)
    changed = make_plan(store, **{"run.py": Content(b"other")})
    assert apply(changed, work) == ["run.py"]
    assert holds(work, changed)
    after = tree(work)
    assert {name for name in after if after[name] != before[name]} == {"run.py"}


def test_everything_can_change_and_the_users_own_files_stay(tmp_path: Path) -> None:
    store, work = tmp_path / "store", tmp_path / "demo"
    apply(make_plan(store), work)
    (work / "notes.txt").write_text("mine")
    apply(second_plan(store), work)
    assert (work / "notes.txt").read_text() == "mine"
    (work / "notes.txt").unlink()
    assert holds(work, second_plan(store))
    assert apply(make_plan(store), work)  # and back
    assert holds(work, make_plan(store))


def test_weights_are_linked_and_texts_are_not(tmp_path: Path, model: Path) -> None:
    work = tmp_path / "demo"
    text = Content((model / "tokenizer.json").read_bytes())
    weights = Weights(model / "model.safetensors")
    apply(make_plan(tmp_path / "s", **{"checkpoints/t.json": text, "checkpoints/m": weights}), work)
    assert (work / "checkpoints/m").samefile(model / "model.safetensors")
    (work / "checkpoints/t.json").write_text("edited")
    assert (model / "tokenizer.json").read_text() == "{}"


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"weights")
    (tmp_path / "snapshot").symlink_to("blob")
    plan = make_plan(tmp_path / "s", **{"checkpoints/m": Weights(tmp_path / "snapshot")})
    apply(plan, tmp_path / "demo")
    linked = tmp_path / "demo/checkpoints/m"
    assert not linked.is_symlink()
    assert linked.samefile(tmp_path / "blob")
    assert apply(plan, tmp_path / "demo") == []


@pytest.mark.parametrize("reason", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_weights_that_cannot_be_linked_are_copied_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    plan, work = make_plan(tmp_path / "store"), tmp_path / "demo"
    apply(plan, work)
    copy = work / "checkpoints/parts/model-1.safetensors"
    assert copy.read_bytes() == (tmp_path / "store/w1").read_bytes()
    assert not copy.samefile(tmp_path / "store/w1")
    assert apply(plan, work) == []
    (tmp_path / "store/w1").write_bytes(b"other weights")
    assert apply(plan, work) == ["checkpoints/parts/model-1.safetensors"]
    assert copy.read_bytes() == b"other weights"


def test_replaced_weights_are_linked_anew(tmp_path: Path) -> None:
    plan, work = make_plan(tmp_path / "store"), tmp_path / "demo"
    apply(plan, work)
    (tmp_path / "new").write_bytes(b"n" * 100)
    (tmp_path / "new").replace(tmp_path / "store/w1")
    assert apply(plan, work) == ["checkpoints/parts/model-1.safetensors"]
    assert holds(work, plan)


def test_damage_is_repaired(tmp_path: Path) -> None:
    plan, work = make_plan(tmp_path / "store"), tmp_path / "demo"
    apply(plan, work)
    (work / "run.py").write_text("edited")
    (work / "push").chmod(0o644)
    (work / "checkpoints/junk.bin").write_bytes(b"junk")
    (work / "checkpoints/tokenizer.json").unlink()
    assert apply(plan, work) == [
        "checkpoints/junk.bin", "checkpoints/tokenizer.json", "push", "run.py"]  # fmt: skip
    assert holds(work, plan)


def test_what_lies_behind_a_linked_folder_is_safe(tmp_path: Path) -> None:
    plan, work = make_plan(tmp_path / "store"), tmp_path / "demo"
    apply(plan, work)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    shutil.rmtree(work / "checkpoints")
    (work / "checkpoints").symlink_to(precious)
    apply(plan, work)
    assert holds(work, plan)
    assert (precious / "file").read_text() == "mine"


@pytest.mark.parametrize("content", [None, "not json", "[]", '{"model_type": "llama"}'])
def test_a_directory_of_someone_else_is_left_alone(tmp_path: Path, content: str | None) -> None:
    work = tmp_path / "demo"
    work.mkdir()
    (work / "thesis.tex").touch()
    if content is not None:
        (work / "config.json").write_text(content)
    before = tree(work)
    with pytest.raises(ConfigError, match="move it out of the way"):
        apply(make_plan(tmp_path / "store"), work)
    assert tree(work) == before


def test_a_file_in_the_way_and_a_full_disk_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="not a directory"):
        apply(make_plan(tmp_path / "store"), tmp_path / "file")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ConfigError, match="No space left"):
        apply(make_plan(tmp_path / "store"), tmp_path / "demo")


def die_at(step: int) -> None:
    """Kill this process, as `kill -9` does, in the middle of its step-th change of the disk."""
    steps = itertools.count()

    def wrap(change: Callable[..., Any]) -> Callable[..., Any]:
        def counted(path: Path, *arguments: Any, **options: Any) -> Any:
            if next(steps) == step:
                if change is write_bytes:
                    write_bytes(path, arguments[0][: len(arguments[0]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return change(path, *arguments, **options)

        return counted

    write_bytes = Path.write_bytes
    for name in ("write_bytes", "replace", "hardlink_to", "symlink_to", "unlink", "chmod",
                 "mkdir", "rmdir"):  # fmt: skip
        setattr(Path, name, wrap(getattr(Path, name)))


def killed_at(step: int, plan: Plan, directory: Path) -> bool:
    """Apply a plan in a process that is killed at `step`; False when it ended before."""
    child = os.fork()
    if child == 0:
        try:
            die_at(step)
            apply(plan, directory)
            os._exit(0)
        finally:
            os._exit(70)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("from_nothing", [True, False])
def test_killed_at_any_step_it_looks_unfinished_and_the_next_run_finishes(
    tmp_path: Path, from_nothing: bool
) -> None:
    store = tmp_path / "store"
    first, second = make_plan(store), second_plan(store)
    for step in itertools.count():
        work = tmp_path / str(step)
        if not from_nothing:
            apply(first, work)
        killed = killed_at(step, second, work)
        if (work / "cog.yaml").exists():
            assert holds(work, second) or (killed and holds(work, first))
        apply(second, work)
        assert holds(work, second)
        if not killed:
            break
    assert step > 15
