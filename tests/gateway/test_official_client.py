"""The official `replicate` package, unchanged, against the gateway."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import replicate
from replicate.exceptions import ModelError, ReplicateError

from tests.gateway.running import TOKEN, Running


def test_run(shared: Running) -> None:
    reference = f"local/toy:{shared.version()}"
    output = shared.replicate.run(reference, input={"text": "b", "count": 2})
    assert list(output) == ["b", "b"]


def test_run_without_waiting_polls(shared: Running) -> None:
    reference = f"local/toy:{shared.version()}"
    output = shared.replicate.run(reference, input={"text": "é\n", "count": 2}, wait=False)
    assert list(output) == ["é\n", "é\n"]


def test_a_failing_run_raises_the_models_reason(shared: Running) -> None:
    reference = f"local/toy:{shared.version()}"
    with pytest.raises(ModelError, match="the toy broke"):
        shared.replicate.run(reference, input={"text": "b", "fail_at": 1})


def test_stream(shared: Running) -> None:
    reference = f"local/toy:{shared.version()}"
    events = list(shared.replicate.stream(reference, input={"text": "a\n", "count": 2}))
    assert [(event.event.value, event.data) for event in events] == [
        ("output", "a\n"),
        ("output", "a\n"),
        ("done", "{}"),
    ]


def test_stream_is_live(shared: Running, tmp_path: Path) -> None:
    """The second chunk is made only after we have read the first."""
    gate = tmp_path / "gate"
    reference = f"local/toy:{shared.version()}"
    stream = shared.replicate.stream(reference, input={"text": "a", "gate": str(gate)})
    assert str(next(stream)) == "a"
    gate.touch()
    assert [str(event) for event in stream] == ["a", "a", ""]


async def test_async_stream(shared: Running) -> None:
    client = shared.replicate
    version = await asyncio.to_thread(shared.version)
    events = [
        str(event)
        async for event in await client.async_stream(
            f"local/toy:{version}", input={"text": "a", "style": "number"}
        )
    ]
    assert events == ["a0", "a1", "a2", ""]


def test_create_get_cancel_list(shared: Running, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    client = shared.replicate
    prediction = client.predictions.create(
        version=shared.version(), input={"text": "a", "gate": str(gate)}
    )
    assert prediction.status == "starting"
    assert len(prediction.id) == 26
    assert next(iter(shared.events(prediction.dict()))) is not None
    prediction.cancel()
    gate.touch()
    assert prediction.status == "canceled"
    again = client.predictions.get(prediction.id)
    assert again.status == "canceled"
    assert again.completed_at is not None
    assert client.predictions.list().results[0].id == prediction.id


def test_deployments(shared: Running) -> None:
    client = shared.replicate
    assert client.deployments.get("local/toy").current_release.model == "local/toy"
    prediction = client.deployments.predictions.create("local/toy", input={"text": "d"})
    prediction.wait()
    assert prediction.output == ["d", "d", "d"]


def test_account_models_and_versions(shared: Running) -> None:
    client = shared.replicate
    assert client.accounts.current().username == "local"
    model = client.models.get("local/toy")
    assert [version.id for version in model.versions.list()] == [model.latest_version.id]
    schema = model.versions.get(model.latest_version.id).openapi_schema
    assert "text" in schema["components"]["schemas"]["Input"]["properties"]
    assert [other.name for other in client.models.list()] == ["toy"]
    assert [deployment.name for deployment in client.deployments.list()] == ["toy"]


def test_a_wrong_token(shared: Running) -> None:
    client = replicate.Client(api_token="wrong", base_url=shared.gateway.url)
    with pytest.raises(ReplicateError) as raised:
        client.models.get("local/toy")
    assert raised.value.status == 401
    assert TOKEN not in str(raised.value)


@pytest.mark.parametrize("name", ["local/none", "other/toy"])
def test_an_unknown_model(shared: Running, name: str) -> None:
    with pytest.raises(ReplicateError) as raised:
        shared.replicate.models.get(name)
    assert raised.value.status == 404


def test_an_unknown_version(shared: Running) -> None:
    with pytest.raises(ReplicateError, match="version does not exist") as raised:
        shared.replicate.predictions.create(version="0" * 64, input={"text": "a"})
    assert raised.value.status == 422


def test_a_model_without_version_is_for_official_models_only(shared: Running) -> None:
    with pytest.raises(ReplicateError) as raised:
        shared.replicate.models.predictions.create("local/toy", input={"text": "a"})
    assert raised.value.status == 404


def test_invalid_input(shared: Running) -> None:
    with pytest.raises(ReplicateError, match="count") as raised:
        shared.replicate.predictions.create(version=shared.version(), input={"count": "many"})
    assert raised.value.status == 422
