"""The rules of Replicate's API that the official client does not show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from lmtp_replicate.gateway.prediction_store import Retention
from tests.gateway.running import TOKEN, Running, running

CREATE = "/v1/deployments/local/toy/predictions"


def test_wait_answers_with_the_end(shared: Running) -> None:
    for header in ("wait", "wait=60", "respond-async, wait=60"):
        prediction = shared.create({"text": "a", "count": 1}, {"Prefer": header})
        assert (prediction["status"], prediction["output"]) == ("succeeded", ["a"])
        assert prediction["metrics"]["total_time"] >= prediction["metrics"]["predict_time"] >= 0


def test_a_wait_that_runs_out_answers_starting(shared: Running, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    prediction = shared.create({"text": "a", "gate": str(gate)}, {"Prefer": "wait=1"})
    assert prediction["status"] == "starting"
    events = shared.events(prediction)
    assert [next(events).get("data") for _ in range(2)] == [None, "a"]
    assert shared.get(prediction)["status"] == "processing"
    gate.touch()
    assert shared.ended(prediction)["status"] == "succeeded"


@pytest.mark.parametrize("header", [{"Prefer": "wait=0"}, {"Prefer": "wait=61"}])
def test_a_wait_out_of_range(shared: Running, header: dict[str, str]) -> None:
    answer = shared.http.post(CREATE, json={"input": {"text": "a"}}, headers=header)
    assert answer.status_code == 422
    assert "1 to 60" in answer.json()["detail"]


@pytest.mark.parametrize("value", ["4", "25h", "soon", "", "-5", "99999999h"])
def test_a_deadline_out_of_range(shared: Running, value: str) -> None:
    headers = {"Cancel-After": value}
    answer = shared.http.post(CREATE, json={"input": {"text": "a"}}, headers=headers)
    assert answer.status_code == 422
    assert "Cancel-After" in answer.json()["detail"]


def test_cancelling_what_has_ended_changes_nothing(shared: Running) -> None:
    prediction = shared.create({"text": "a"}, {"Prefer": "wait"})
    answer = shared.http.post(prediction["urls"]["cancel"])
    assert answer.status_code == 200
    assert answer.json() == shared.get(prediction)
    assert answer.json()["status"] == "succeeded"


def test_both_schemes_of_authorization(shared: Running) -> None:
    for scheme in ("Bearer", "Token", "bearer"):
        headers = {"Authorization": f"{scheme} {TOKEN}"}
        assert httpx.get(f"{shared.gateway.url}/v1/account", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "value", ["", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xe9"]
)
def test_other_authorization_is_refused(shared: Running, value: str) -> None:
    headers = {"Authorization": value.encode("latin-1")}
    answer = httpx.get(f"{shared.gateway.url}/v1/account", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert answer.json() == {
        "title": "Unauthenticated",
        "detail": "You did not pass a valid authentication token",
        "status": 401,
    }


@pytest.mark.parametrize(
    ("inputs", "type_", "field", "description"),
    [
        ({}, "required", "input", "text is required"),
        (
            {"text": 3},
            "invalid_type",
            "input.text",
            "Invalid type. Expected: string, given: integer",
        ),
        ({"text": None}, "invalid_type", "input.text", "Expected: string, given: null"),
        ({"text": "a", "count": True}, "invalid_type", "input.count", "given: boolean"),
        ({"text": "a", "count": 0}, "number_gte", "input.count", "greater than or equal to 1"),
        ({"text": "a", "count": 10**9}, "number_lte", "input.count", "less than or equal to"),
        ({"text": "a", "style": "x"}, "enum", "input.style", '"plain", "number"'),
        ({"text": "a", "x": 1}, "additional_property_not_allowed", "input", "property x is not"),
    ],
)
def test_invalid_fields(
    shared: Running, inputs: dict[str, Any], type_: str, field: str, description: str
) -> None:
    answer = shared.http.post(CREATE, json={"input": inputs})
    body = answer.json()
    assert (answer.status_code, body["title"]) == (422, "Input validation failed")
    [invalid] = body["invalid_fields"]
    assert (invalid["type"], invalid["field"]) == (type_, field)
    assert description in invalid["description"]
    assert body["detail"] == f"- {invalid['field']}: {invalid['description']}\n"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": None},
        {"input": "text"},
        {"input": {"text": "a"}, "surprise": 1},
        {"input": {"text": "a"}, "version": "x"},
        {"input": {"text": "a"}, "webhook": "https://example.com"},
    ],
)
def test_bodies_that_are_refused(shared: Running, body: dict[str, Any]) -> None:
    answer = shared.http.post(CREATE, json=body)
    assert answer.status_code == 422
    assert answer.json()["invalid_fields"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"input": {"text": NaN}}',
        b'{"input": {"text": "a", "seconds": 1e999}}',
        b"[" * 100_000,
        b'{"input": {"count": ' + b"9" * 5000 + b"}}",
    ],
)
def test_garbage(shared: Running, body: bytes) -> None:
    answer = shared.http.post(CREATE, content=body)
    assert answer.status_code == 400
    assert answer.json()["status"] == 400


def test_a_lone_surrogate_fails_its_own_prediction_only(shared: Running) -> None:
    body = b'{"input": {"text": "\\ud800"}}'
    prediction = shared.http.post(CREATE, content=body, headers={"Prefer": "wait"}).json()
    assert prediction["status"] == "failed"
    assert "refused" in prediction["error"]
    assert shared.create({"text": "a"}, {"Prefer": "wait"})["status"] == "succeeded"


def test_a_huge_body(shared: Running) -> None:
    body = b'{"input": {"text": "' + b"a" * (65 << 20) + b'"}}'
    assert shared.http.post(CREATE, content=body).status_code == 413


def test_a_large_input_and_output(shared: Running) -> None:
    text = "0123456789" * 800_000
    prediction = shared.create({"text": text, "count": 1}, {"Prefer": "wait"})
    assert prediction["output"] == [text]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/predictions/none",
        "/v1/predictions/..%2f..%2fetc",
        "/v1/streams/none",
        "/v1/../../etc/passwd",
        "/v1/models/local/%2e%2e%2ftoy",
        "/v1/models/local/toy%2f..%2ftoy",
        "/v1/models/local/toy/versions/none",
        "/v1/deployments/local/none",
    ],
)
def test_paths_that_lead_nowhere(shared: Running, path: str) -> None:
    answer = shared.http.get(path)
    assert answer.status_code == 404
    assert answer.json() == {
        "detail": "The requested resource could not be found.",
        "status": 404,
    }


def test_a_method_that_does_not_exist(shared: Running) -> None:
    assert shared.http.delete("/v1/account").json()["status"] == 405


def test_versions_by_name_and_id(shared: Running) -> None:
    version = shared.version()
    for reference, status in [
        (version, 201),
        (f"local/toy:{version}", 201),
        (f"other/toy:{version}", 422),
        ("local/toy", 422),
        (7, 422),
    ]:
        body = {"version": reference, "input": {"text": "a"}}
        assert shared.http.post("/v1/predictions", json=body).status_code == status


def test_the_list_is_paged_newest_first(toy: Path) -> None:
    with running([toy]) as own:
        created = [own.create({"text": "a", "count": 1}) for _ in range(103)]
        made = [own.ended(prediction)["id"] for prediction in created]  # nothing changes any more
        first = own.http.get("/v1/predictions").json()
        second = own.http.get(first["next"]).json()
        assert first["previous"] is None
        assert second["next"] is None
        assert second["previous"].startswith(own.gateway.url)
        assert own.http.get(second["previous"]).json()["results"] == first["results"]
        listed = [p["id"] for p in first["results"] + second["results"]]
        assert listed == made[::-1]
        split = first["results"][10]["created_at"]
        newer = own.http.get("/v1/predictions", params={"created_after": split}).json()
        older = own.http.get("/v1/predictions", params={"created_before": split}).json()
        assert [p["id"] for p in newer["results"]] == listed[:11]
        assert [p["id"] for p in older["results"]] == listed[11:]
        assert own.http.get("/v1/predictions?cursor=x").status_code == 400
        assert own.http.get("/v1/predictions?created_after=x").status_code == 400


def test_data_is_removed_later(toy: Path) -> None:
    with running([toy], retention=Retention(data_seconds=0.0)) as own:
        prediction = own.create({"text": "a"})
        events = list(own.events(prediction))
        while not (shown := own.get(prediction))["data_removed"]:
            pass  # the timer is due as soon as the prediction has ended
        assert (shown["input"], shown["output"], shown["logs"]) == (None, None, None)
        assert shown["status"] == "succeeded"
        assert events[0] == {"comment": ": hi"}
        assert list(own.events(prediction))[-1] == {"comment": ":408: 408 Request Timeout"}


def test_old_predictions_are_forgotten(toy: Path) -> None:
    with running([toy], retention=Retention(records=2)) as own:
        made = [own.create({"text": "a"}, {"Prefer": "wait"}) for _ in range(3)]
        listed = own.http.get("/v1/predictions").json()["results"]
        assert [p["id"] for p in listed] == [made[2]["id"], made[1]["id"]]
        assert own.http.get(made[0]["urls"]["get"]).status_code == 404
        assert own.http.get(made[0]["urls"]["stream"]).status_code == 404


def test_creates_are_throttled(toy: Path) -> None:
    with running([toy]) as own:
        own.gateway.faults.creates_per_minute = 1
        accepted = own.http.post(CREATE, json={"input": {"text": "a"}})
        assert accepted.headers["ratelimit-remaining"] == "0"
        answer = own.http.post(CREATE, json={"input": {"text": "a"}})
        body = answer.json()
        assert answer.status_code == 429
        assert answer.headers["ratelimit-remaining"] == "0"
        assert answer.headers["ratelimit-reset"] == str(body["retry_after"])
        assert 0 < body["retry_after"] <= 60
        assert f"~{body['retry_after']}s" in body["detail"]
        own.gateway.faults.creates_per_minute = None
        assert json.dumps(own.create({"text": "a"}))
