"""What an endpoint's text means, decided once.

An endpoint names a model on Replicate, a deployment there, or an LMTP websocket server:

====================================== =========================================================
``replicate:ORG/MODEL``                the model's newest version (an official model has none)
``replicate:ORG/MODEL/VERSION``        exactly that version
``replicate:deployment/ORG/NAME``      a deployment
``replicate`` or ``replicate:``        whatever the model's name says, in one of the forms above
``ws://HOST:PORT``, ``wss://...``      an LMTP websocket server
``http(s)://HOST``, ``HOST:PORT``      the same, as LMQL spells it
====================================== =========================================================

A `replicate:` endpoint may carry settings: ``replicate:ORG/MODEL?boot_timeout=600`` (see
`settings`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from lmtp_replicate.client.settings import Patience, Savings, read_settings
from lmtp_replicate.errors import EndpointError

FORMS: Final = (
    "replicate:ORG/MODEL, replicate:ORG/MODEL/VERSION, replicate:deployment/ORG/NAME, "
    "ws://HOST:PORT or HOST:PORT"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_WEBSOCKET_SCHEMES = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}


@dataclass(frozen=True)
class ReplicateEndpoint:
    """A model or deployment on Replicate; a `version` of None means the newest one."""

    owner: str
    name: str
    version: str | None = None
    is_deployment: bool = False
    patience: Patience = field(default_factory=Patience)
    savings: Savings = field(default_factory=Savings)

    @property
    def label(self) -> str:
        """How messages name it: ``ORG/MODEL`` or ``deployment ORG/NAME``."""
        return f"{'deployment ' if self.is_deployment else ''}{self.owner}/{self.name}"


@dataclass(frozen=True)
class WebSocketEndpoint:
    """An LMTP websocket server. `model` is the name sent with each op."""

    url: str
    model: str = ""

    @property
    def label(self) -> str:
        """How messages name it: the URL without what it may hold of secrets."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


Endpoint = ReplicateEndpoint | WebSocketEndpoint


def parse_endpoint(text: str, *, model: str | None = None) -> Endpoint:
    """The meaning of `text`; `model` names the model where the endpoint itself does not.

    Raises `EndpointError` that shows the right forms.
    """
    stripped = text.strip()
    if stripped == "replicate" or stripped.startswith("replicate:"):
        return _replicate(text, stripped.removeprefix("replicate").removeprefix(":"), model)
    if "://" not in stripped:
        stripped = f"ws://{stripped}"
    return _websocket(text, stripped, model)


def _replicate(text: str, rest: str, model: str | None) -> ReplicateEndpoint:
    path, _, query = rest.partition("?")
    if not path:
        path = (model or "").removeprefix("replicate:")
    parts = path.split("/")
    if not all(_NAME.fullmatch(part) for part in parts):
        raise _wrong(text, f"{path!r} is not made of names separated by '/'" if path else "no name")
    settings = _settings(text, query)
    match parts:
        case ["deployment", owner, name]:
            return ReplicateEndpoint(owner, name, None, True, *settings)
        case [owner, name]:
            return ReplicateEndpoint(owner, name, None, False, *settings)
        case [owner, name, version]:
            return ReplicateEndpoint(owner, name, version, False, *settings)
    raise _wrong(text, f"{path!r} has {len(parts)} parts instead of 2 or 3")


def _settings(text: str, query: str) -> tuple[Patience, Savings]:
    try:
        return read_settings(dict(parse_qsl(query, keep_blank_values=True)))
    except ValueError as error:
        raise _wrong(text, str(error)) from None


def _websocket(text: str, url: str, model: str | None) -> WebSocketEndpoint:
    try:
        parts = urlsplit(url)
    except ValueError as error:  # half an IPv6 address
        raise _wrong(text, str(error)) from None
    scheme = _WEBSOCKET_SCHEMES.get(parts.scheme)
    if scheme is None:
        raise _wrong(text, f"unknown scheme {parts.scheme!r}")
    try:
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        has_host = False
    if not has_host or any(character.isspace() for character in url):
        raise _wrong(text, "it names no host")
    if "://" not in text and ":" not in parts.netloc:
        raise _wrong(text, "it has neither a scheme nor a port")
    return WebSocketEndpoint(urlunsplit((scheme, *parts[1:])), model or "")


def _wrong(text: str, reason: str) -> EndpointError:
    return EndpointError(f"endpoint {text!r}: {reason}. Endpoints look like {FORMS}.")
