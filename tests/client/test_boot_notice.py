"""What the user sees while models start up."""

from __future__ import annotations

import asyncio
import io
import logging

import pytest

from lmtp_replicate.client.boot_notice import BootNotice
from tests.client.clock import run


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_one_line_of_the_terminal_counts_the_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")

    async def boot() -> None:
        notice, since = BootNotice(), asyncio.get_running_loop().time() - 5
        for prediction in range(3):  # three of one model share the line
            notice.starting("org/model", prediction, since=since, patience=1800)
        await asyncio.sleep(3.5)
        notice.over("org/model", 0)
        notice.starting("org/other", 9, since=since + 8, patience=1800)
        await asyncio.sleep(1)
        for prediction in (1, 2):
            notice.over("org/model", prediction)
        notice.over("org/other", 9)
        await asyncio.sleep(5)
        assert len(asyncio.all_tasks()) == 1

    run(boot)
    text = terminal.getvalue()
    lines = text.split("\r\x1b[K")
    assert "\n" not in text
    assert [line.partition(";")[0] for line in lines[1:-2]] == [
        f"starting up on Replicate: org/model ({seconds} s)" for seconds in (5, 6, 7, 8)
    ]
    assert "org/model (9 s), org/other (1 s)" in lines[-2]
    assert "minutes" in lines[-2]
    assert lines[-1] == ""  # the line is gone
    assert not caplog.messages


def test_a_long_line_does_not_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "40")

    async def boot() -> None:
        notice = BootNotice()
        notice.starting("org/" + "m" * 60, 1, since=1000.0, patience=1800)
        await asyncio.sleep(0.5)
        notice.over("org/" + "m" * 60, 1)
        await asyncio.sleep(0)

    run(boot)
    assert max(map(len, terminal.getvalue().split("\r\x1b[K"))) == 39


def test_elsewhere_the_log_tells_it_less_and_less_often(caplog: pytest.LogCaptureFixture) -> None:
    async def boot() -> None:
        notice = BootNotice()
        notice.starting("org/model", 1, since=1000.0, patience=1800)
        notice.starting("org/model", 2, since=1000.0, patience=1800)
        await asyncio.sleep(600)
        notice.over("org/model", 1)
        notice.over("org/model", 2)

    with caplog.at_level(logging.WARNING):
        run(boot)
    assert all("org/model is starting up" in message for message in caplog.messages)
    seconds = [message.partition("for ")[2].split()[0] for message in caplog.messages]
    assert seconds == ["0", "15", "30", "60", "120", "240", "480"]


def test_without_a_stderr_nothing_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)

    async def boot() -> None:
        notice = BootNotice()
        notice.starting("org/model", 1, since=1000.0, patience=1800)
        await asyncio.sleep(1)
        notice.over("org/model", 1)
        notice.over("org/model", 1)

    run(boot)


def test_who_silences_the_logger_silences_the_terminal_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)

    async def boot() -> None:
        notice = BootNotice()
        notice.starting("org/model", 1, since=0, patience=1800)
        await asyncio.sleep(3)
        notice.over("org/model", 1)
        assert len(asyncio.all_tasks()) == 1

    with caplog.at_level(logging.ERROR, "lmtp_replicate.client.boot_notice"):
        run(boot)
    assert terminal.getvalue() == ""
