"""The OpenAPI schema of a runner, read from its source without running it.

`cog build` makes the same from the same file with its static parser; without Docker it is ours to
make. The shape follows Cog's ``pkg/schema/openapi_spec.go`` as far as Cog's runtime, Replicate's
clients and web form read it: the inputs, the output, and whether it streams.
"""

from __future__ import annotations

import ast
from typing import Any

from lmtp_replicate.errors import ConfigError

_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
_BOUNDS = {"ge": "minimum", "le": "maximum", "min_length": "minLength", "max_length": "maxLength"}


def openapi_schema(source: str, runner: str = "Runner") -> dict[str, Any]:
    """The schema of `runner`'s method `run` in the Python text `source`.

    Every input needs an annotation (str, int, float, bool, or one of them ``| None``) and
    ``Input(...)`` with literal arguments; the output is ``ConcatenateIterator[str]``. ConfigError
    for anything else.
    """
    run = _run_method(ast.parse(source), runner)
    if ast.unparse(run.returns or ast.Constant(None)) != "ConcatenateIterator[str]":
        raise ConfigError(f"run.py: {runner}.run must return ConcatenateIterator[str]")
    properties, choices = {}, {}
    inputs = run.args.args[1:]
    for order, (argument, default) in enumerate(zip(inputs, run.args.defaults, strict=True)):
        properties[argument.arg], allowed = _property(argument, default, order)
        if allowed is not None:
            choices[argument.arg] = allowed
    required = [name for name, value in properties.items() if "default" not in value]
    return _document(
        {"title": "Input", "type": "object", "properties": properties}
        | ({"required": required} if required else {}),
        choices,
        streams=any(ast.unparse(d) == "cog.streaming" for d in run.decorator_list),
    )


def _run_method(module: ast.Module, runner: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    for node in module.body:
        if isinstance(node, ast.ClassDef) and node.name == runner:
            for method in node.body:
                if (
                    isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
                    and method.name == "run"
                ):
                    return method
    raise ConfigError(f"run.py: there is no method {runner}.run")


def _property(
    argument: ast.arg, default: ast.expr, order: int
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """An input's schema, and that of its choices where it has some."""
    name = argument.arg
    annotation = ast.unparse(argument.annotation) if argument.annotation else ""
    type_name, _, rest = annotation.partition(" | ")
    if type_name not in _TYPES or rest not in ("", "None"):
        raise ConfigError(f"run.py: input {name} has the type {annotation!r}")
    if not isinstance(default, ast.Call) or ast.unparse(default.func) != "Input":
        raise ConfigError(f"run.py: input {name} is not declared with Input(...)")
    given = {str(word.arg): ast.literal_eval(word.value) for word in default.keywords}
    schema: dict[str, Any] = {"x-order": order}
    allowed = None
    if choices := given.pop("choices", None):
        allowed = {"title": name, "description": "An enumeration.", "enum": choices}
        allowed["type"] = _TYPES[type_name]
        schema["allOf"] = [{"$ref": f"#/components/schemas/{name}"}]
    else:
        schema |= {"title": name.replace("_", " ").title(), "type": _TYPES[type_name]}
    if rest:
        schema["nullable"] = True
    if given.get("default") is None and not rest:
        given.pop("default", None)
    for key, value in given.items():
        schema[_BOUNDS.get(key, key)] = value
    return schema, allowed


def _document(inputs: dict[str, Any], choices: dict[str, Any], *, streams: bool) -> dict[str, Any]:
    output = {
        "title": "Output",
        "type": "array",
        "items": {"type": "string"},
        "x-cog-array-type": "iterator",
        "x-cog-array-display": "concatenate",
    }
    request = {"type": "object", "properties": {"input": {"$ref": "#/components/schemas/Input"}}}
    response = {"type": "object", "properties": {"output": {"$ref": "#/components/schemas/Output"}}}
    predict: dict[str, Any] = {
        "summary": "Predict",
        "requestBody": {"content": {"application/json": {"schema": request}}},
        "responses": {
            "200": {
                "description": "Successful Response",
                "content": {"application/json": {"schema": response}},
            }
        },
    }
    if streams:
        predict["x-cog-streaming"] = True
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": "0.1.0"},
        "paths": {"/predictions": {"post": predict}},
        "components": {"schemas": {"Input": inputs, "Output": output, **choices}},
    }
