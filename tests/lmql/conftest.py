"""The real gateway and Cog runtime with the alphabet model, in a thread with its own loop, so that
queries may be synchronous or not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmtp_replicate.building.schema import openapi_schema
from lmtp_replicate.client.hub import close_process_hub
from tests.client import replicate_double
from tests.client.replicate_double import ReplicateDouble
from tests.gateway_thread import GatewayThread
from tests.lmql.alphabet import AlphabetEngine, save_tokenizer

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "lmtp_replicate" / "building" / "templates" / "run.py"


def work_directory(folder: Path) -> Path:
    """As `./build` makes it, but with the alphabet model."""
    text = TEMPLATE.read_text()
    load = "CogRunner.load(Path(__file__).resolve().parent)"
    assert load in text
    text = text.replace(load, "runner()").replace(
        "from lmtp_replicate.serving.cog_runner import CogRunner",
        "from tests.lmql.alphabet import runner",
    )
    (folder / ".cog").mkdir(parents=True)
    (folder / "run.py").write_text(text)
    (folder / "cog.yaml").write_text("run: run.py:Runner\n")
    (folder / ".cog" / "openapi_schema.json").write_text(json.dumps(openapi_schema(text)))
    return folder


@pytest.fixture(scope="session")
def gateway_thread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayThread]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        work = work_directory(tmp_path_factory.mktemp("work") / "alphabet")
        with GatewayThread(work) as running:
            yield running
        close_process_hub()


@pytest.fixture
def gateway(
    gateway_thread: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> Iterator[GatewayThread]:
    """For clients that know nothing yet."""
    close_process_hub()
    gateway_thread.lead_here(monkeypatch)
    yield gateway_thread


@pytest.fixture
def own_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gateway_thread: GatewayThread
) -> Iterator[GatewayThread]:
    """A gateway that the test may break."""
    with GatewayThread(work_directory(tmp_path / "alphabet")) as own:
        own.lead_here(monkeypatch)
        yield own


@pytest.fixture(scope="session")
def tokenizer() -> str:
    """The path of the model's tokenizer."""
    return str(save_tokenizer(Path(os.environ["HOME"])))


@pytest.fixture
def replicate(monkeypatch: pytest.MonkeyPatch) -> Iterator[ReplicateDouble]:
    """A small Replicate in this process, with the alphabet model."""
    with ReplicateDouble(AlphabetEngine()).running() as double:
        monkeypatch.setenv("REPLICATE_BASE_URL", double.url)
        monkeypatch.setenv("REPLICATE_API_TOKEN", replicate_double.TOKEN)
        yield double
        close_process_hub()
