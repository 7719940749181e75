"""The template's own runner behind the gateway, with an engine that tells what it does."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from lmtp_replicate.gateway.prediction_store import Retention
from lmtp_replicate.protocol.codecs import LineDecoder, encode_batch
from lmtp_replicate.protocol.messages import Generate, TokenItem
from tests.gateway.running import Running, running
from tests.serving.coglet import ROOT, scripted_work_directory


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    directory = scripted_work_directory(tmp_path / "scripted")
    (directory / "cog.yaml").write_text("run: run.py:Runner\n")
    return directory


def generate(tag: int, max_tokens: int) -> dict[str, str]:
    op = Generate(stream_id=tag, prompt=(tag,), max_tokens=max_tokens)
    return {"ops_batch_json": encode_batch([op], model="scripted")}


def release(pipe: Path) -> None:
    """Wait until the engine stands at `pipe`, and let it go."""
    os.close(os.open(pipe, os.O_WRONLY))


def test_lmtp_through_the_gateway(scripted: Path) -> None:
    with running([scripted]) as own:
        prediction = own.create(generate(7, 5), model="scripted")
        decoder = LineDecoder()
        items = [
            item
            for event in own.events(prediction)
            if event.get("event") == "output"
            for item in decoder.feed(event["data"])
        ]
        tokens = [item.token for item in items if isinstance(item, TokenItem)]
        assert tokens == [8, 9, 10, 11, 12]


def begun(own: Running, tag: int, max_tokens: int = 1000) -> dict[str, Any]:
    """A long prediction that the runner has."""
    prediction = own.create(generate(tag, max_tokens), model="scripted")
    while own.get(prediction)["status"] == "starting":
        pass
    return prediction


def test_stopping_in_mid_stream_is_no_alarm(
    scripted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """coglet logs errors about each prediction that its own end cuts off."""
    with caplog.at_level(logging.WARNING), running([scripted]) as own:
        for tag in range(4):
            begun(own, tag, max_tokens=10**6)
    assert not caplog.messages


@pytest.mark.slow
def test_cancel_reaches_the_engine_within_two_steps_and_leaves_the_others(scripted: Path) -> None:
    """Data is removed at once here, which shows that the cancelled prediction has left."""
    start, middle = scripted / "hold-12-1", scripted / "hold-11-20"
    os.mkfifo(start)
    os.mkfifo(middle)
    with running([scripted], retention=Retention(data_seconds=0.0)) as own:
        *others, cancelled = (begun(own, tag) for tag in (12, 13, 14, 11))
        release(start)
        held = os.open(middle, os.O_WRONLY)  # the engine is about to make its 20th token
        answer = own.http.post(cancelled["urls"]["cancel"]).json()
        assert answer["status"] == "canceled"
        while not own.get(cancelled)["data_removed"]:
            pass
        os.close(held)
        assert [own.ended(other)["status"] for other in others] == ["succeeded"] * 3
    made = [line.split() for line in (scripted / "tokens.log").read_text().splitlines()]
    lengths = {tag: [int(length) for t, length in made if t == tag] for tag in ("11", "12", "13")}
    assert 20 <= max(lengths["11"]) <= 22
    assert lengths["12"] == lengths["13"] == list(range(1, 1001))
