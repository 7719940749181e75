"""config.toml is checked as a whole, before anything is made; mistakes are named by their path."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmtp_replicate.building import BuildConfig
from lmtp_replicate.building.config import find_config
from lmtp_replicate.errors import ConfigError
from tests.building.tiny import config_file

EXAMPLE = Path(__file__).parents[2] / "config.toml.example"


def load_error(directory: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config_file(directory, text)
    return str(caught.value)


def test_upstreams_configuration_is_understood(tmp_path: Path) -> None:
    config = config_file(
        tmp_path,
        """
        dest_prefix = "r8.im/me/"
        [models]
        [models.llama-2-7b-hf--lmql-4bit]
        huggingface.repo = "meta-llama/Llama-2-7b-hf"
        huggingface.version = "main"
        config.load_in_4bit = true
        config.torch_dtype = "float16"
        config.use_safetensors = true
        """,
    )
    model = config.models["llama-2-7b-hf--lmql-4bit"]
    assert (model.huggingface.repo, model.huggingface.version) == (
        "meta-llama/Llama-2-7b-hf",
        "main",
    )
    assert (model.options.quantize, model.options.dtype) == ("4bit", "float16")
    assert not model.options.allow_pickle
    assert model.options.model_args == {}
    assert config.destination == "r8.im/me"


def test_other_keys_of_config_are_passed_on(tmp_path: Path) -> None:
    config = config_file(
        tmp_path, '[models.m]\nhuggingface.repo="a/b"\nconfig.rope_theta=1e6\nconfig.dtype="bf16"'
    )
    assert config.models["m"].options.model_args == {"rope_theta": 1e6}
    assert config.models["m"].options.dtype == "bfloat16"


def test_the_example_is_valid_and_shows_every_key(tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    config = config_file(tmp_path, text)
    assert config.destination is None  # it still says YOURACCOUNT
    known = {"dest_prefix", "huggingface.repo", "huggingface.version"}
    options = type(next(iter(config.models.values())).options).model_fields
    known |= {f"config.{name}" for name in options if name != "revision"}
    known |= {"load_in_4bit", "load_in_8bit", "torch_dtype", "use_safetensors"}
    assert [key for key in sorted(known) if key not in text] == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("dest_prefx = 'r8.im/me/'\n[models]", "dest_prefx: unknown key"),
        ("[models.demo]\nhuggingface.repo='a/b'\nhuggingface.versoin='main'",
         "models.demo.huggingface.versoin: unknown key"),
        ("[models.demo]\nhugingface.repo='a/b'", "models.demo.hugingface: unknown key"),
        ("[models.demo]\nhuggingface.version='main'", "models.demo.huggingface.repo: is missing"),
        ("[models.demo]\nhuggingface.repo=3", "models.demo.huggingface.repo: must be"),
        ("[models.demo]\nhuggingface.repo='a/b'\nhuggingface.version=3",
         "models.demo.huggingface.version: Input should be a valid string"),
        ("[models.demo]\nhuggingface.repo='./nowhere'", "neither a directory"),
        ("[models.demo]\nhuggingface.repo='a/b/c'", "neither a directory"),
        ("[models.demo]\nhuggingface.repo='.'\nhuggingface.version='main'", "has no versions"),
        ("[models.demo]\nhuggingface.repo='a/b'\nconfig.dtype='float8'",
         "models.demo.config: dtype"),
        ("[models.demo]\nhuggingface.repo='a/b'\nconfig.load_in_4bit='yes'", "load_in_4bit"),
        ("[models.demo]\nhuggingface.repo='a/b'\nconfig.revision='main'",
         "use huggingface.version"),
        ("[models.demo]\nhuggingface.repo='a/b'\nconfig.token='hf_secret'", "HF_TOKEN"),
        ("[models.llama-3.1]\nhuggingface.repo='a/b'", 'needs quotes: [models."llama-3.1"]'),
        ("dest_prefix='r8.im'\n[models]", "dest_prefix: 'r8.im' is not a registry and an account"),
        ("dest_prefix='r8.im/a b'\n[models]", "dest_prefix"),
        ("dest_prefix='r8.im/a$(id)'\n[models]", "dest_prefix"),
        ("dest_prefix='--help/me'\n[models]", "dest_prefix"),
        ("", "models: is missing"),
        ("[models]", "models: Dictionary should have at least 1 item"),
        ("[models", "config.toml: "),
    ],
)  # fmt: skip
def test_a_mistake_is_named_by_its_path(tmp_path: Path, text: str, place: str) -> None:
    assert place in load_error(tmp_path, text)


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    message = load_error(tmp_path, "extra=1\n[models.A]\nhuggingface.repo='a/b'\nother=1")
    assert message.count("\n") == 2
    assert all(part in message for part in ("extra", "models.A", "models.A.other"))


@pytest.mark.parametrize(
    "name",
    ["a/b", "../up", "..", ".hidden", "-dash", "end-", "Upper", "with space", "a..b", "", "ü",
     "a___b", "x" * 101, "$(id)", "a\\nb"],
)  # fmt: skip
def test_names_unusable_on_replicate_or_as_a_directory_are_refused(
    tmp_path: Path, name: str
) -> None:
    message = load_error(tmp_path, f"[models.'{name}']\nhuggingface.repo='a/b'")
    assert "cannot be a model's name" in message


@pytest.mark.parametrize("name", ["demo", "llama-2-13b-hf--lmtp-8bit", "llama-3.1_8b", "7b"])
def test_names_that_replicate_takes_are_taken(tmp_path: Path, name: str) -> None:
    assert name in config_file(tmp_path, f"[models.'{name}']\nhuggingface.repo='a/b'").models


def test_a_directory_is_relative_to_the_file_and_goes_before_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir("/")
    config = config_file(tmp_path, "[models.m]\nhuggingface.repo='org/name'")
    assert config.models["m"].huggingface.repo == tmp_path / "org" / "name"


def test_unknown_models_are_named_with_the_known_ones(tmp_path: Path) -> None:
    config = config_file(tmp_path, "[models.one]\nhuggingface.repo='a/b'")
    with pytest.raises(ConfigError, match="no model 'two'; it has one"):
        config.select(["two"])
    assert list(config.select([])) == list(config.select(["one", "one"])) == ["one"]


def test_the_file_is_looked_for_here_then_in_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, root, other = tmp_path / "here", tmp_path / "root", tmp_path / "other.toml"
    here.mkdir()
    root.mkdir()
    monkeypatch.setattr("lmtp_replicate.building.config.checkout_root", lambda: root)
    with pytest.raises(ConfigError, match=r"cp .*config\.toml\.example config\.toml"):
        find_config(None, here)
    (root / "config.toml").touch()
    assert find_config(None, here) == root / "config.toml"
    (here / "config.toml").touch()
    assert find_config(None, here) == here / "config.toml"
    with pytest.raises(ConfigError, match="no such file"):
        find_config(other, here)
    other.touch()
    assert find_config(other, here) == other


def test_a_configuration_does_not_change(tmp_path: Path) -> None:
    config = config_file(tmp_path, "[models.one]\nhuggingface.repo='a/b'")
    with pytest.raises(ValueError, match="frozen"):
        config.dest_prefix = "r8.im/you"  # type: ignore[misc]
    assert isinstance(config, BuildConfig)
