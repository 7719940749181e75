from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest

from lmtp_replicate.client.endpoint import (
    ReplicateEndpoint,
    WebSocketEndpoint,
    parse_endpoint,
)
from lmtp_replicate.client.settings import Patience, Savings
from lmtp_replicate.errors import EndpointError


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("replicate:org/model", ReplicateEndpoint("org", "model")),
        (" replicate:org/m-1.5_b ", ReplicateEndpoint("org", "m-1.5_b")),
        ("replicate:org/model/abc123", ReplicateEndpoint("org", "model", "abc123")),
        ("replicate:deployment/org/prod", ReplicateEndpoint("org", "prod", is_deployment=True)),
        (
            "replicate:org/model?boot_timeout=60&idle_timeout=0.5",
            ReplicateEndpoint("org", "model", patience=Patience(60.0, 0.5)),
        ),
        (
            "replicate:deployment/org/prod?memory=off&coalesce=on",
            ReplicateEndpoint("org", "prod", None, True, savings=Savings(memory=False)),
        ),
        ("ws://host:1", WebSocketEndpoint("ws://host:1")),
        ("wss://host/path?q=1", WebSocketEndpoint("wss://host/path?q=1")),
        ("http://host:8080/", WebSocketEndpoint("ws://host:8080/")),
        ("https://host", WebSocketEndpoint("wss://host")),
        ("localhost:8080", WebSocketEndpoint("ws://localhost:8080")),
        ("[::1]:8080", WebSocketEndpoint("ws://[::1]:8080")),
    ],
)
def test_meaning(text: str, meaning: object) -> None:
    assert parse_endpoint(text) == meaning


@pytest.mark.parametrize("text", ["replicate", "replicate:", "replicate:?boot_timeout=5"])
@pytest.mark.parametrize("model", ["org/model/v1", "replicate:org/model/v1"])
def test_the_model_names_what_the_endpoint_does_not(text: str, model: str) -> None:
    endpoint = parse_endpoint(text, model=model)
    assert isinstance(endpoint, ReplicateEndpoint)
    assert (endpoint.owner, endpoint.name, endpoint.version) == ("org", "model", "v1")


def test_a_websocket_carries_the_models_name() -> None:
    assert parse_endpoint("ws://h:1", model="gpt2") == WebSocketEndpoint("ws://h:1", "gpt2")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "replicate",
        "replicate:",
        "replicate:model",
        "replicate:org/",
        "replicate:org//model",
        "replicate:org/model/version/more",
        "replicate:https://replicate.com/org/model",
        "replicate:org/mo del",
        "replicate:../etc/passwd",
        "replicate:org/model?token=r8_x",
        "replicate:org/model?boot_timeout=soon",
        "replicate:org/model?idle_timeout=-1",
        "replicate:org/model?idle_timeout=nan",
        "replicate:org/model?memory=maybe",
        "replikate:org/model",
        "org/model",
        "localhost",
        "ftp://host:1",
        "ws://",
        "ws://host:port",
        "ws://[::1",
        "host:99999",
        "my host:80",
    ],
)
def test_a_wrong_spelling_shows_the_right_ones(text: str) -> None:
    with pytest.raises(EndpointError) as caught:
        parse_endpoint(text)
    assert repr(text) in str(caught.value)
    assert "replicate:deployment/ORG/NAME" in str(caught.value)


def test_the_documentation_has_every_setting_and_its_default() -> None:
    text = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
    found = dict(re.findall(r"^\| endpoint \| `(\w+)` \| (\w+) \|", text, re.MULTILINE))
    patience = {name: f"{value:g}" for name, value in asdict(Patience()).items()}
    savings = {name: "on" if value else "off" for name, value in asdict(Savings()).items()}
    assert found == patience | savings
