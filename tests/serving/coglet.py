"""The real Cog runtime on a scripted work directory."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "lmtp_replicate" / "building" / "templates" / "run.py"
INPUTS = (
    "prompt n max_length temperature top_p top_k repetition_penalty seed ops_batch_json encoding"
)
SCHEMA: dict[str, Any] = {
    "openapi": "3.0.2",
    "info": {"title": "Cog", "version": "0.1.0"},
    "paths": {"/predictions": {"post": {"x-cog-streaming": True}}},
    "components": {
        "schemas": {
            "Input": {
                "title": "Input",
                "type": "object",
                "properties": {name: {} for name in INPUTS.split()},
            },
            "Output": {
                "title": "Output",
                "type": "array",
                "items": {"type": "string"},
                "x-cog-array-type": "iterator",
                "x-cog-array-display": "concatenate",
            },
        }
    },
}


def scripted_work_directory(folder: Path) -> Path:
    """Make `folder` a work directory as `./build` would, but with the scripted engine: the
    template's `run.py` with another `setup`."""
    text = TEMPLATE.read_text()
    load = "CogRunner.load(Path(__file__).resolve().parent)"
    assert load in text
    text = text.replace(load, "scripted_runner(Path(__file__).resolve().parent)")
    text = text.replace(
        "from lmtp_replicate.serving.cog_runner import CogRunner",
        "from tests.serving.scripted_runner import scripted_runner",
    )
    (folder / ".cog").mkdir(parents=True)
    (folder / "run.py").write_text(text)
    (folder / ".cog" / "openapi_schema.json").write_text(json.dumps(SCHEMA))
    return folder
