"""Work directories whose model is the rote one."""

from __future__ import annotations

import json
from pathlib import Path

import lmtp_replicate.building
from lmtp_replicate.building.schema import openapi_schema

TEMPLATE = Path(lmtp_replicate.building.__file__).parent / "templates" / "run.py"
_LOAD = "CogRunner.load(Path(__file__).resolve().parent)"
_IMPORT = "from lmtp_replicate.serving.cog_runner import CogRunner"


def make_work_directory(folder: Path, *, step_seconds: float = 0.0) -> Path:
    """As `lmtp-replicate build` makes it, but with the rote model; a step takes `step_seconds`.
    Cog's runtime must find this repository in PYTHONPATH."""
    text = TEMPLATE.read_text()
    if text.count(_LOAD) != 1 or text.count(_IMPORT) != 1:
        raise ValueError(f"{TEMPLATE} no longer loads the model as expected here")
    text = text.replace(_LOAD, f"runner({step_seconds})")
    text = text.replace(_IMPORT, "from benchmarks.rote.engine import runner")
    (folder / ".cog").mkdir(parents=True)
    (folder / "run.py").write_text(text)
    (folder / "cog.yaml").write_text("run: run.py:Runner\n")
    (folder / ".cog" / "openapi_schema.json").write_text(json.dumps(openapi_schema(text)))
    return folder
