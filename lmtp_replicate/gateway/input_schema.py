"""What a model accepts as input, from the OpenAPI schema of its version."""

from __future__ import annotations

import base64
import json
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmtp_replicate.errors import ConfigError

_JSON_TYPES = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}


@dataclass(frozen=True)
class InvalidField:
    """One thing wrong with an input, worded as Replicate does."""

    type: str
    field: str
    description: str


class InputSchema:
    """Checks inputs and converts command line text; built once per version."""

    def __init__(self, openapi: Mapping[str, Any]) -> None:
        from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

        self._schemas: Mapping[str, Any] = openapi["components"]["schemas"]
        self._input: Mapping[str, Any] = self._schemas["Input"]
        self._validator = Draft202012Validator(
            {"$ref": "#/components/schemas/Input", "components": {"schemas": self._schemas}}
        )

    @property
    def _properties(self) -> Mapping[str, Any]:
        properties: Mapping[str, Any] = self._input.get("properties", {})
        return properties

    def invalid_fields(self, values: Mapping[str, Any]) -> list[InvalidField]:
        """Everything wrong with `values`; empty when they are acceptable."""
        wrong = [
            InvalidField(
                "additional_property_not_allowed",
                "input",
                f"Additional property {name} is not allowed",
            )
            for name in values
            if name not in self._properties
        ]
        # OpenAPI 3.0 says `nullable` where JSON Schema would name the type "null".
        given = {
            name: value
            for name, value in values.items()
            if not (value is None and self._properties.get(name, {}).get("nullable"))
        }
        for error in self._validator.iter_errors(given):
            wrong += _worded(error)
        return wrong

    def convert(self, name: str, text: str) -> Any:
        """The value of `-i name=text` as `cog run` reads it: text by the field's type, `@file` for
        a file's content (a data URI where the model expects a file). ConfigError otherwise."""
        if name not in self._properties:
            known = ", ".join(sorted(self._properties)) or "none"
            raise ConfigError(f"-i {name}: the model has no such input; it has: {known}")
        field = self._resolved(self._properties[name])
        if text.startswith("@"):
            content = _read(name, Path(text[1:]))
            if field.get("format") == "uri":
                return _data_uri(text, content)
            try:
                text = content.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ConfigError(f"-i {name}={text}: not UTF-8 text") from error
        return _parsed(name, text, str(field.get("type", "string")))

    def _resolved(self, field: Mapping[str, Any]) -> Mapping[str, Any]:
        """`field` with the schema that `$ref` or `allOf` names (a choice) merged in."""
        merged = dict(field)
        for part in [field, *field.get("allOf", [])]:
            if "$ref" in part:
                merged |= self._schemas[part["$ref"].rpartition("/")[2]]
        return merged


def problem_text(invalid: Sequence[InvalidField]) -> str:
    """The `detail` of Replicate's 422: one line per field."""
    return "".join(f"- {field.field}: {field.description}\n" for field in invalid)


def _worded(error: Any) -> list[InvalidField]:
    field = ".".join(["input", *(str(part) for part in error.absolute_path)])
    limit = error.validator_value
    match error.validator:
        case "required":
            missing = [name for name in limit if name not in error.instance]
            # One error per missing name, each naming its own in the text.
            name = next(n for n in missing if f"'{n}'" in error.message)
            return [InvalidField("required", field, f"{name} is required")]
        case "type":
            given = _JSON_TYPES.get(type(error.instance), "unknown")
            text = f"Invalid type. Expected: {limit}, given: {given}"
            return [InvalidField("invalid_type", field, text)]
        case "minimum":
            return [InvalidField("number_gte", field, f"Must be greater than or equal to {limit}")]
        case "maximum":
            return [InvalidField("number_lte", field, f"Must be less than or equal to {limit}")]
        case "enum":
            choices = ", ".join(json.dumps(choice) for choice in limit)
            text = f"{field} must be one of the following: {choices}"
            return [InvalidField("enum", field, text)]
        case other:
            return [InvalidField(str(other), field, f"Does not satisfy {other}: {limit}")]


def _read(name: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"-i {name}=@{file}: {error.strerror}") from error


def _data_uri(name: str, content: bytes) -> str:
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _parsed(name: str, text: str, kind: str) -> Any:
    try:
        match kind:
            case "string":
                return text
            case "integer":
                return int(text)
            case "number":
                return float(text)
            case "boolean":
                return {"true": True, "false": False}[text.lower()]
            case _:
                return json.loads(text)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"-i {name}={text[:80]}: not a value of type {kind}") from error
