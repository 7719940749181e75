"""Where the demo works."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmtp_replicate.demo.workspace import SHIPPED_MODEL, Workspace
from lmtp_replicate.errors import ConfigError


def checkpoints(directory: Path, tokenizer: str) -> Path:
    """A work directory with this for a tokenizer."""
    (directory / "checkpoints").mkdir(parents=True, exist_ok=True)
    (directory / "checkpoints" / "tokenizer.json").write_text(tokenizer)
    return directory


def test_each_model_has_a_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a" / "model").mkdir(parents=True)
    (tmp_path / "b" / "model").mkdir(parents=True)
    models = [None, str(tmp_path / "a" / "model"), str(tmp_path / "b" / "model"), "owner/model"]
    spaces = [Workspace.of(model, tmp_path) for model in models]
    assert len({space.folder for space in spaces}) == 4
    assert [space.is_offline for space in spaces] == [True, True, True, False]
    assert spaces[0].source == str(SHIPPED_MODEL)
    assert spaces[3].source == "owner/model"


def test_the_tokenizers_path_changes_with_the_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMQL pickles a tokenizer by its path and never checks it."""
    monkeypatch.chdir(tmp_path)
    space = Workspace.of(None, tmp_path)
    space.prepare()
    first = space.tokenizer(checkpoints(tmp_path / "work", "one"))
    again = space.tokenizer(checkpoints(tmp_path / "work", "one"))
    second = space.tokenizer(checkpoints(tmp_path / "work", "two"))
    assert first == again != second
    assert (second / "tokenizer.json").read_text() == "two"


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    space = Workspace.of(None, tmp_path)
    space.prepare()
    with pytest.raises(ConfigError, match="has no tokenizer"):
        space.tokenizer(tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / ".cache").write_text("in the way")
    with pytest.raises(ConfigError, match=r"\.cache"):
        Workspace.of(None, tmp_path).prepare()


def test_what_is_neither_directory_nor_hub_id_is_refused(tmp_path: Path) -> None:
    space = Workspace.of("not a model!", tmp_path)
    space.prepare()
    with pytest.raises(ConfigError, match="not a model!"):
        space.build()
