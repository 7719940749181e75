"""Finding a model: a Hub id, its commit, and everything that can be wrong with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import LlamaConfig, LlamaForCausalLM

from lmtp_replicate.engine import checkpoint
from lmtp_replicate.engine.checkpoint import find_checkpoint
from lmtp_replicate.errors import ModelLoadError
from tests.engine.tiny_tokenizer import tiny_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def in_cache(home: Path) -> None:
    """A tiny model as the Hub's cache would hold it after a download."""
    repo = home / "hub" / "models--org--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    config = LlamaConfig(
        vocab_size=272,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    LlamaForCausalLM(config).save_pretrained(repo / "snapshots" / COMMIT)
    tiny_tokenizer().save_pretrained(repo / "snapshots" / COMMIT)


@pytest.mark.slow
def test_a_hub_model_loads_offline_at_its_commit(tmp_path: Path) -> None:
    in_cache(tmp_path)
    code = """
from lmtp_replicate.engine.loading import load
from lmtp_replicate.engine.options import LoadOptions
from lmtp_replicate.errors import ModelLoadError
loaded = load("org/tiny", LoadOptions())
print(loaded.model_id, loaded.revision, loaded.vocab_size)
for name, revision in [("org/absent", None), ("org/tiny", "v9")]:
    try:
        load(name, LoadOptions(revision=revision))
    except ModelLoadError as error:
        print(error)
"""
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first == f"org/tiny {COMMIT} 257"
    assert second.startswith("org/absent: is not in the local cache and the Hub cannot be reached")
    assert third.startswith("org/tiny at revision 'v9': is not in the local cache")


def response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/x"))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (GatedRepoError("secret", response=response(403)), "gated; ask for access"),
        (RepositoryNotFoundError("x", response=response(404)), "not on the Hub, or is private"),
        (RevisionNotFoundError("x", response=response(404)), "no revision 'v1'"),
        (RemoteEntryNotFoundError("x", response=response(404)), "no config.json"),
        (LocalEntryNotFoundError("x"), "Hub cannot be reached"),
        (HfHubHTTPError("502 bad gateway", response=response(502)), "502 bad gateway"),
    ],
)
def test_what_the_hub_refuses_is_explained(
    monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(checkpoint, "hf_hub_download", refuse)
    with pytest.raises(ModelLoadError) as caught:
        find_checkpoint("org/model", "v1")
    assert says in str(caught.value)
    assert "org/model at revision 'v1'" in str(caught.value)
