"""`lmtp-replicate lmql`: LMQL's own command line, with the plug-in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmtp_replicate.cli import main
from tests.gateway_thread import GatewayThread


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command changes both, for its process and those it starts."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))


@pytest.mark.slow
def test_run_a_file(gateway: GatewayThread, tokenizer: str, tmp_path: Path) -> None:
    file = tmp_path / "query.lmql"
    file.write_text(
        'argmax\n    "abc[X]"\n'
        f'from lmql.model("replicate:local/alphabet", tokenizer="{tokenizer}")\n'
        "where len(TOKENS(X)) < 6\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "lmtp_replicate", "lmql", "run", str(file), "--no-clear"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "abcdefgh" in done.stdout


def test_the_processes_that_lmql_starts_have_the_plug_in(capfd: pytest.CaptureFixture) -> None:
    """As `lmql chat` does: a new interpreter, with the environment of this one."""
    assert main(["lmql", "version"]) == 0
    code = "import sys; print(sys.modules['lmql.models.lmtp.lmtp_replicate_client'].__doc__)"
    subprocess.run([sys.executable, "-c", code], check=True)
    out = capfd.readouterr().out
    assert "lmql v0.7.3" in out
    assert "lmtp_replicate's client in the place of LMQL's own" in out


def test_a_hidden_sitecustomize_still_runs(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.of_the_user = True\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert main(["lmql", "version"]) == 0
    code = "import sys; assert sys.of_the_user and 'lmtp_replicate' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lmqls_exit_status_is_ours(capsys: pytest.CaptureFixture) -> None:
    assert main(["lmql", "no-such-command"]) == 1


def test_a_missing_lmql_says_what_to_install(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "lmql.cli", None)
    assert main(["lmql", "version"]) == 1
    assert "pip install 'lmtp-replicate[lmql]'" in capsys.readouterr().err
