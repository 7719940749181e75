"""C code of ours, compiled where it runs.

Only there is it known what the CPU can do, and a wheel without binaries installs everywhere. What
was compiled is kept in the user's cache folder, under a name that says from what, by what and for
which CPU it was made. Where there is no compiler, callers do without.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

logger = logging.getLogger(__name__)

_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fPIC", "-fopenmp")
_SECONDS = 120
"""After which a compiler is given up."""


class CompilationError(Exception):
    """The sources did not become a library; says why."""


def compile_library(sources: Path, definitions: Sequence[str] = ()) -> ctypes.CDLL:
    """The library that all ``.c`` files in the folder `sources` make, with `definitions` for the
    preprocessor. Raises CompilationError."""
    compiler = [*find_compiler(), *(f"-D{name}" for name in definitions)]
    name = f"{sources.name}-{_fingerprint(sources, compiler)}.so"
    try:
        folder = _cache_folder()
        if folder is None:
            with tempfile.TemporaryDirectory() as scratch:
                return ctypes.CDLL(str(_compile(compiler, sources, Path(scratch))))
        return _loaded(folder / name) or _compiled_once(compiler, sources, folder / name)
    except OSError as error:
        raise CompilationError(f"the compiled {sources.name} cannot be loaded: {error}") from error


def _compiled_once(compiler: list[str], sources: Path, kept: Path) -> ctypes.CDLL:
    """The library, also as the file `kept`, which a process that began sooner may have made."""
    with _alone_in(kept.parent):
        if (library := _loaded(kept)) is not None:
            return library
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            file = _compile(compiler, sources, Path(scratch))
            library = ctypes.CDLL(str(file))
            file.replace(kept)  # at once: others may be looking
            return library


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait for other processes that compile: all of them at once would take all the longer."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every file system has locks; then all compile
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # a fork of another thread may have the file open
        os.close(handle)


def _loaded(file: Path) -> ctypes.CDLL | None:
    """None for what is not there or broken, such as a file of which a crash left nothing."""
    try:
        return ctypes.CDLL(str(file))
    except OSError:
        return None


def find_compiler() -> list[str]:
    """The command of a C compiler. Raises CompilationError where there is none. Not clang: its
    OpenMP is none that torch brings along, and its vectors have other names."""
    try:
        chosen = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise CompilationError(f"$CC is no command: {error}") from error
    if chosen:
        return chosen
    for name in ("gcc", "cc"):
        path = shutil.which(name)
        if path:
            return [path]
    raise CompilationError("there is no C compiler (gcc, cc or $CC)")


def _compile(compiler: list[str], sources: Path, scratch: Path) -> Path:
    library = scratch / "library.so"
    files = sorted(sources.glob("*.c"))
    compiled = [str(scratch / f"{source.stem}.o") for source in files]
    commands = [
        [*compiler, *_FLAGS, "-c", str(source), "-o", to]
        for source, to in zip(files, compiled, strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, commands))
    # Linked without -fopenmp: torch has loaded its own OpenMP already, for all to see. A second one
    # would bring threads of its own, which would fight with torch's for the cores.
    _run([*compiler, "-shared", *compiled, "-o", str(library)])
    return library


def _run(command: list[str]) -> str:
    """What `command` prints. Raises CompilationError."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=True
        )
    except subprocess.CalledProcessError as error:
        logger.debug("%s: %s", shlex.join(command), error.stderr)
        lines = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
        telling = next((line for line in lines if "error" in line), lines[0])
        raise CompilationError(f"{command[0]} failed: {telling}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilationError(f"{command[0]} could not be run: {error}") from error
    return done.stdout


def _fingerprint(sources: Path, compiler: list[str]) -> str:
    parts = [path.read_bytes() for path in sorted(sources.glob("*.[ch]"))]
    version = _run([*compiler, "--version"])
    parts += [text.encode() for text in (repr((compiler, _FLAGS)), version, _cpu())]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def _cpu() -> str:
    """What decides which instructions may be used: `-march=native` asks for the same."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return platform.processor()
    told = ("model name", "flags", "Features", "CPU part")
    return "\n".join(line for line in first.splitlines() if line.startswith(told))


def _cache_folder() -> Path | None:
    """Where compiled libraries are kept; None where that cannot be, or is not ours alone."""
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / "lmtp-replicate"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except (OSError, RuntimeError):
        return None
    is_ours = state.st_uid == os.getuid() and not state.st_mode & 0o022
    return folder if is_ours and os.access(folder, os.W_OK) else None
