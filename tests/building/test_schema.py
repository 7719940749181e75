"""The schema made from run.py is the one Cog's own reading of that file would make."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files
from typing import Any

import pytest

from lmtp_replicate.building.schema import openapi_schema
from lmtp_replicate.errors import ConfigError

TEMPLATE = (files("lmtp_replicate.building") / "templates" / "run.py").read_text("utf-8")
HEAD = "class Runner:\n    @cog.streaming\n    async def run(self, "
TAIL = ") -> ConcatenateIterator[str]: ..."


def schemas(source: str) -> dict[str, Any]:
    schema = openapi_schema(source)["components"]["schemas"]
    assert isinstance(schema, dict)
    return schema


def test_the_output_streams_and_is_joined() -> None:
    schema = openapi_schema(TEMPLATE)
    assert schema["paths"]["/predictions"]["post"]["x-cog-streaming"] is True
    assert schema["components"]["schemas"]["Output"] == {
        "title": "Output",
        "type": "array",
        "items": {"type": "string"},
        "x-cog-array-type": "iterator",
        "x-cog-array-display": "concatenate",
    }


def test_inputs_have_order_types_bounds_and_choices() -> None:
    found = schemas(TEMPLATE)
    inputs = found["Input"]["properties"]
    assert "required" not in found["Input"]
    assert [value["x-order"] for value in inputs.values()] == list(range(len(inputs)))
    assert inputs["prompt"]["nullable"] is True
    assert (
        inputs["n"].items()
        >= {"type": "integer", "default": 1, "minimum": 1, "maximum": 10}.items()
    )
    assert inputs["ops_batch_json"]["title"] == "Ops Batch Json"
    assert inputs["encoding"]["allOf"] == [{"$ref": "#/components/schemas/encoding"}]
    assert {"enum": ["lmtp", "lmtp-extended"], "type": "string"}.items() <= found[
        "encoding"
    ].items()


def test_it_agrees_with_cogs_own_inspector() -> None:
    """cog 0.23.1 can inspect a runner it has imported; `run.py` is imported in a clean process."""
    code = f"""
import json, sys, types
stub = types.ModuleType("lmtp_replicate.serving.cog_runner")
stub.CogRunner = object
sys.modules[stub.__name__] = stub
sys.modules["run"] = run = types.ModuleType("run")
exec({TEMPLATE!r}, run.__dict__)
from cog._inspector import create_predictor
info = create_predictor("run", "Runner")
print(json.dumps([
    [name, f.order, f.default.default if hasattr(f.default, "default") else f.default,
     f.description, f.ge, f.le, f.choices, f.type.repetition.name, f.type.primitive.name]
    for name, f in info.inputs.items()]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = schemas(TEMPLATE)
    types = {"STRING": "string", "INTEGER": "integer", "FLOAT": "number"}
    for name, order, default, description, ge, le, choices, repetition, kind in json.loads(
        done.stdout
    ):
        ours = found["Input"]["properties"].pop(name)
        chosen = found.get(name, {})
        assert ours["x-order"] == order
        assert ours["default"] == default
        assert ours["description"] == description
        assert (ours.get("minimum"), ours.get("maximum")) == (ge, le)
        assert chosen.get("enum") == choices
        assert ours.get("nullable", False) == (repetition == "OPTIONAL")
        assert ours.get("type", chosen.get("type")) == types[kind]
    assert found["Input"]["properties"] == {}


def test_an_input_without_default_is_required() -> None:
    text = HEAD + "a: str = Input(description='x'), b: int = Input(default=None)" + TAIL
    assert schemas(text)["Input"]["required"] == ["a", "b"]


def test_a_run_that_does_not_stream_does_not_say_so() -> None:
    text = (HEAD + "a: bool = Input(default=True)" + TAIL).replace("@cog.streaming", "@cog.other")
    assert "x-cog-streaming" not in openapi_schema(text)["paths"]["/predictions"]["post"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("class Other: ...", "no method Runner.run"),
        (HEAD + "a: list = Input(default=1)" + TAIL, "input a has the type 'list'"),
        (HEAD + "a: str | int = Input(default=1)" + TAIL, "input a has the type"),
        (HEAD + "a: str = 'x'" + TAIL, "input a is not declared with Input"),
        (HEAD + "a: str = Input(default='x')) -> str: ...", "must return ConcatenateIterator"),
    ],
)
def test_what_it_does_not_understand_is_an_error(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        openapi_schema(text)
