"""The product as a user has it: the shipped model built by `build`, served by the real gateway, Cog
runtime and websocket server, each in a process or thread of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import pytest

from lmtp_replicate.building import BuildConfig, build
from lmtp_replicate.client.hub import close_process_hub
from lmtp_replicate.demo.workspace import SHIPPED_MODEL
from lmtp_replicate.engine.loading import LoadedModel, load
from lmtp_replicate.engine.options import LoadOptions
from tests.gateway_thread import GatewayThread

SECOND_EOS = 7
"""In the model `two-eos`, this id ends a stream too."""


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two work directories: `demo` is the shipped model, and `two-eos`."""
    folder = tmp_path_factory.mktemp("built")
    changed = shutil.copytree(SHIPPED_MODEL, folder / "two-eos")
    settings = json.loads((changed / "generation_config.json").read_text())
    settings["eos_token_id"] = [settings["eos_token_id"], SECOND_EOS]
    (changed / "generation_config.json").write_text(json.dumps(settings))
    config = folder / "config.toml"
    config.write_text(
        f"[models.demo]\nhuggingface.repo = {json.dumps(str(SHIPPED_MODEL))}\n"
        f"[models.two-eos]\nhuggingface.repo = {json.dumps(str(changed))}\n"
    )
    build(BuildConfig.load(config), [], folder / "work")
    return folder / "work"


@pytest.fixture(scope="session")
def gateway_thread(work: Path) -> Iterator[GatewayThread]:
    with GatewayThread(work) as running:
        yield running
    close_process_hub()


@pytest.fixture
def gateway(
    gateway_thread: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> Iterator[GatewayThread]:
    gateway_thread.lead_here(monkeypatch)
    yield gateway_thread
    gateway_thread.wait_until_quiet()


@pytest.fixture(scope="session")
def served() -> Iterator[str]:
    """`lmtp-replicate serve` in a process of its own; its host:port."""
    command = [sys.executable, "-m", "lmtp_replicate", "serve", str(SHIPPED_MODEL), "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield _address(server)
    finally:
        server.terminate()
        server.communicate(timeout=30)


def _address(server: subprocess.Popen[str]) -> str:
    assert server.stderr is not None
    seen = []
    for line in server.stderr:
        seen.append(line)
        if 'endpoint="' in line:
            return line.split('endpoint="', 1)[1].split('"', 1)[0]
    raise AssertionError("".join(seen))


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A path named by its content: LMQL pickles tokenizers by path and never checks them."""
    digest = blake2b((SHIPPED_MODEL / "tokenizer.json").read_bytes(), digest_size=8).hexdigest()
    link = tmp_path_factory.mktemp("tokenizers") / digest
    link.symlink_to(SHIPPED_MODEL, target_is_directory=True)
    return str(link)


@pytest.fixture(scope="session")
def loaded() -> LoadedModel:
    """The shipped model again, for the oracle: float32 and eager attention."""
    loaded = load(SHIPPED_MODEL, LoadOptions(dtype="float32", device="cpu"))
    loaded.model.set_attn_implementation("eager")
    return loaded
