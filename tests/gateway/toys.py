"""Small work directories for the real Cog runtime, written by the tests themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEXT = '''
"""A model in the form of ours: `async def run` that returns a sync generator."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from cog import BaseRunner, Input, concurrent, streaming


class Runner(BaseRunner):
    def setup(self) -> None:
        print("warming up")

    @concurrent(max=4)
    @streaming
    async def run(
        self,
        text: str = Input(description="what to repeat"),
        count: int = Input(default=3, ge=1, le=100000),
        seconds: float = Input(default=0.0, ge=0),
        gate: str = Input(default=""),
        fail_at: int = Input(default=-1),
        style: str = Input(default="plain", choices=["plain", "number"]),
    ) -> Iterator[str]:
        return self._chunks(text, count, seconds, gate, fail_at, style)

    def _chunks(self, text, count, seconds, gate, fail_at, style) -> Iterator[str]:
        for number in range(count):
            if number == fail_at:
                raise ValueError("the toy broke")
            if gate and number:  # the test lets the rest go
                while not Path(gate).exists():
                    time.sleep(0.005)
            if seconds:
                time.sleep(seconds)
            yield f"{text}{number}" if style == "number" else text
'''
INPUTS: dict[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "count": {"type": "integer", "default": 3, "minimum": 1, "maximum": 100000},
    "seconds": {"type": "number", "default": 0.0, "minimum": 0},
    "gate": {"type": "string", "default": ""},
    "fail_at": {"type": "integer", "default": -1},
    "style": {"allOf": [{"$ref": "#/components/schemas/style"}], "default": "plain"},
}
STYLE = {"title": "style", "type": "string", "enum": ["plain", "number"]}


def openapi(inputs: dict[str, dict[str, Any]], required: list[str]) -> dict[str, Any]:
    """What `cog build` writes for a streaming model with these inputs."""
    properties = {
        name: {"title": name, "x-order": place, **field}
        for place, (name, field) in enumerate(inputs.items())
    }
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": "0.1.0"},
        "paths": {"/predictions": {"post": {"x-cog-streaming": True}}},
        "components": {
            "schemas": {
                "Input": {
                    "title": "Input",
                    "type": "object",
                    "required": required,
                    "properties": properties,
                },
                "Output": {
                    "title": "Output",
                    "type": "array",
                    "items": {"type": "string"},
                    "x-cog-array-type": "iterator",
                    "x-cog-array-display": "concatenate",
                },
                "style": STYLE,
            }
        },
    }


def make_toy(
    directory: Path, source: str = TEXT, *, cog_yaml: str = "run: run.py:Runner\n"
) -> Path:
    """A work directory whose model repeats `text`; `source` replaces its run.py."""
    (directory / ".cog").mkdir(parents=True)
    (directory / "cog.yaml").write_text(cog_yaml)
    (directory / "run.py").write_text(source)
    schema = openapi(INPUTS, ["text"])
    (directory / ".cog" / "openapi_schema.json").write_text(json.dumps(schema))
    return directory
