"""C code becomes a library once, and whatever prevents it is said."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lmtp_replicate.engine.compiler import CompilationError, compile_library

pytestmark = pytest.mark.usefixtures("has_compiler")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answers" / "answer.c"
    path.parent.mkdir()
    path.write_text("int answer(void) { return 42; }\n")
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lmtp-replicate"


def use_compiler(commands: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Have a shell script of these commands called as the compiler."""
    script = folder / "cc"
    script.write_text(f"#!/bin/sh\n{commands}")
    script.chmod(0o755)
    patch.setenv("CC", str(script))


def test_it_is_compiled_once_and_kept(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compile_library(source.parent).answer() == 42
    (kept,) = cache.iterdir()
    made = kept.stat().st_mtime_ns
    assert compile_library(source.parent).answer() == 42
    assert (kept.stat().st_mtime_ns, len(list(cache.iterdir()))) == (made, 1)
    source.write_text("int answer(void) { return 43; }\n")
    assert compile_library(source.parent).answer() == 43


def test_who_begins_while_another_compiles_waits_for_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    use_compiler(f'echo "$@" >> {calls}\nsleep 0.3\nexec gcc "$@"\n', tmp_path, monkeypatch)
    with ThreadPoolExecutor(3) as pool:
        libraries = list(pool.map(compile_library, [source.parent] * 3))
    assert [library.answer() for library in libraries] == [42] * 3
    assert sum(" -c " in call for call in calls.read_text().splitlines()) == 1


def test_a_folder_that_others_may_write_to_is_not_trusted(source: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    assert compile_library(source.parent).answer() == 42
    assert list(cache.iterdir()) == []


def test_without_a_cache_folder_it_is_compiled_each_time(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.write_text("a file")
    assert compile_library(source.parent).answer() == 42


@pytest.mark.parametrize(
    ("text", "says"), [("int answer(", "failed:"), ("int other(void); int x = 1;", None)]
)
def test_what_does_not_compile_is_an_error(source: Path, text: str, says: str | None) -> None:
    source.write_text(text)
    if says is None:
        assert not hasattr(compile_library(source.parent), "answer")
        return
    with pytest.raises(CompilationError, match=says):
        compile_library(source.parent)


def test_a_missing_symbol_is_an_error(source: Path) -> None:
    source.write_text("int missing(void); int answer(void) { return missing(); }")
    with pytest.raises(CompilationError, match="cannot be loaded"):
        compile_library(source.parent)


def test_a_broken_file_in_the_cache_is_replaced(source: Path, cache: Path) -> None:
    assert compile_library(source.parent).answer() == 42
    (kept,) = cache.iterdir()
    kept.unlink()  # not cut off: it is mapped into this process
    kept.touch()
    assert compile_library(source.parent).answer() == 42
    assert kept.stat().st_size > 0


def test_a_command_that_is_none_is_an_error(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", 'gcc "')
    with pytest.raises(CompilationError, match=r"\$CC is no command"):
        compile_library(source.parent)


def test_what_the_compiler_says_need_not_be_text(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = "[ $1 = --version ] && exit\nprintf 'warning\\nerror: \\377' >&2\nexit 1\n"
    use_compiler(commands, tmp_path, monkeypatch)
    with pytest.raises(CompilationError, match="failed: error: \N{REPLACEMENT CHARACTER}"):
        compile_library(source.parent)


@pytest.mark.parametrize("compiler", ["/nowhere/cc", "false"])
def test_a_compiler_that_does_not_work_is_an_error(
    source: Path, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(CompilationError, match=compiler):
        compile_library(source.parent)


def test_a_compiler_that_hangs_is_given_up(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*args: object, **kwargs: object) -> None:
        raise subprocess.TimeoutExpired("cc", 1)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(CompilationError, match="could not be run"):
        compile_library(source.parent)
