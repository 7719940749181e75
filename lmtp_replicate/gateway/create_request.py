"""What a client asks for when it creates a prediction: body and headers, checked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

from aiohttp import web

from lmtp_replicate.gateway.input_schema import InvalidField
from lmtp_replicate.gateway.problems import ProblemError, invalid_input

_WAIT = re.compile(r"wait(?:=(\d{1,9}))?")
_LONGEST_WAIT = 60
_DURATION = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s?)?")
_SHORTEST_LIFE, _LONGEST_LIFE = timedelta(seconds=5), timedelta(hours=24)
_IGNORED = {"stream"}  # deprecated by Replicate: every prediction can be streamed
_WEBHOOKS = {"webhook", "webhook_completed", "webhook_events_filter"}


@dataclass(frozen=True)
class CreateRequest:
    """`version` as sent, None if absent; `wait` in seconds, None to answer at once; `deadline`
    from Cancel-After."""

    input: Mapping[str, Any]
    version: str | None
    wait: int | None
    deadline: timedelta | None

    @classmethod
    async def read(cls, request: web.Request, *, takes_version: bool) -> CreateRequest:
        """Read a request; ProblemError 400, 413 or 422 says what is wrong with it."""
        body = await _json_object(request)
        wrong = [
            InvalidField("additional_property_not_allowed", "", f"{name} is not allowed")
            for name in body.keys() - {"input", *_IGNORED, *_WEBHOOKS}
            if name != "version" or not takes_version
        ]
        wrong += [
            InvalidField("webhook", name, "this gateway sends no webhooks; stream or poll instead")
            for name in sorted(_WEBHOOKS & body.keys())
        ]
        if not isinstance(body.get("input"), dict):
            problem = "must be an object" if "input" in body else "input is required"
            wrong.append(InvalidField("required", "input", problem))
        version = body.get("version")
        if takes_version and not isinstance(version, str):
            wrong.append(InvalidField("required", "version", "version is required"))
        if wrong:
            raise invalid_input(wrong)
        return cls(
            input=body["input"],
            version=version,
            wait=_wait(request.headers.get("Prefer", "")),
            deadline=_deadline(request.headers.get("Cancel-After")),
        )


async def _json_object(request: web.Request) -> Mapping[str, Any]:
    try:
        body = json.loads(await request.read(), parse_constant=_not_json, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ProblemError(400, f"JSON parse error - {error}") from error
    if not isinstance(body, dict):
        raise ProblemError(400, "The body must be a JSON object.")
    return body


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is too large for a number")
    return number


def _wait(prefer: str) -> int | None:
    """Seconds of `Prefer: wait[=n]`; other preferences are ignored, as RFC 7240 demands."""
    for preference in prefer.split(","):
        match = _WAIT.fullmatch(preference.strip())
        if match is None:
            continue
        seconds = int(match[1]) if match[1] else _LONGEST_WAIT
        if not 1 <= seconds <= _LONGEST_WAIT:
            raise ProblemError(
                422, f"Prefer: wait={seconds}: must be from 1 to {_LONGEST_WAIT} seconds"
            )
        return seconds
    return None


def _deadline(cancel_after: str | None) -> timedelta | None:
    """`30`, `30s`, `5m`, `2h` or `1m30s`."""
    if cancel_after is None:
        return None
    match = _DURATION.fullmatch(cancel_after.strip())
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    life = timedelta(hours=hours, minutes=minutes, seconds=seconds)
    if not _SHORTEST_LIFE <= life <= _LONGEST_LIFE:
        raise ProblemError(
            422, f"Cancel-After: {cancel_after[:40]!r}: must be a time from 5s to 24h, like 1m30s"
        )
    return life
