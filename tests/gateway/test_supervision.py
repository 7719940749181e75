"""Cog runtimes under the gateway: concurrency, queues, crashes, idleness, set-up that fails."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import httpx
import psutil
import pytest

from lmtp_replicate.gateway.cog_runtime import RuntimeSettings
from tests.gateway.running import QUICK, Running, running
from tests.gateway.toys import TEXT, make_toy

CREATE = "/v1/deployments/local/toy/predictions"


def started(own: Running, gate: Path, count: int = 3) -> tuple[dict, object]:
    """A prediction that has given its first chunk and waits at `gate`; and its stream."""
    prediction = own.create({"text": "a", "gate": str(gate), "count": count})
    events = own.events(prediction)
    assert [next(events).get("data") for _ in range(2)] == [None, "a"]
    return prediction, events


def server(own: Running) -> psutil.Process:
    return psutil.Process(own.gateway.runtime("toy").pid)


def port_of(process: psutil.Process) -> int:
    return next(c.laddr.port for c in process.net_connections() if c.status == "LISTEN")


def wait_until_noticed(port: int) -> None:
    """Until the coglet on `port` knows that its worker is gone, or is gone itself."""
    with suppress(httpx.ConnectError):
        while True:
            # It is just going, or busy.
            with suppress(httpx.ReadError, httpx.RemoteProtocolError, httpx.TimeoutException):
                health = httpx.get(f"http://127.0.0.1:{port}/health-check").json()
                if health["status"] != "READY":
                    return


def test_four_run_at_once_and_the_fifth_waits(toy: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with running([toy]) as own:
        running_ones = [started(own, gate) for _ in range(4)]
        fifth = own.create({"text": "b"})
        assert own.get(fifth)["status"] == "starting"
        gate.touch()
        for _, events in running_ones:
            assert [event["event"] for event in events] == ["output", "output", "done"]
        assert own.ended(fifth)["output"] == ["b"] * 3


def test_first_come_first_served_in_the_slots_that_cog_yaml_sets(tmp_path: Path) -> None:
    directory = make_toy(
        tmp_path / "toy", cog_yaml="predict: run.py:Runner\nconcurrency: {max: 1}\n"
    )
    gate = tmp_path / "gate"
    with running([directory]) as own:
        first, _ = started(own, gate)
        later = [own.create({"text": str(number)}) for number in range(4)]
        assert [own.get(prediction)["started_at"] for prediction in later] == [None] * 4
        gate.touch()
        ended = [own.ended(prediction) for prediction in [first, *later]]
        starts = [prediction["started_at"] for prediction in ended]
        assert starts == sorted(starts)
        for one, next_one in pairwise(ended):
            assert one["completed_at"] <= next_one["started_at"]


def test_the_queue_is_bounded_and_a_waiting_one_can_be_cancelled(toy: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with running([toy], longest_queue=1) as own:
        for _ in range(4):
            started(own, gate)
        waiting = own.create({"text": "b"})
        answer = own.http.post(CREATE, json={"input": {"text": "c"}})
        assert answer.status_code == 429
        assert answer.json()["retry_after"] == 5
        cancelled = own.http.post(waiting["urls"]["cancel"]).json()
        assert (cancelled["status"], cancelled["output"]) == ("canceled", None)
        assert cancelled["completed_at"] is not None
        assert list(own.events(waiting))[-1]["data"] == '{"reason": "canceled"}'
        own.create({"text": "c"})  # there is room again
        gate.touch()


@pytest.mark.slow
def test_a_deadline_cancels_what_runs_and_aborts_what_waits(toy: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with running([toy]) as own:
        for _ in range(3):
            started(own, gate)
        runs = own.create({"text": "a", "gate": str(gate)}, {"Cancel-After": "5s"})
        waits = own.create({"text": "b"}, {"Cancel-After": "0m5"})
        assert runs["deadline"] > runs["created_at"]
        runs, waits = own.ended(runs), own.ended(waits)
        assert (runs["status"], runs["output"]) == ("canceled", ["a"])
        assert (waits["status"], waits["output"], waits["started_at"]) == ("aborted", None, None)
        gate.touch()


@pytest.mark.parametrize("victim", ["worker", "server"])
def test_kill_in_mid_stream(toy: Path, tmp_path: Path, victim: str) -> None:
    """All running predictions fail and keep their output; the next gets a fresh runtime."""
    gate = tmp_path / "gate"
    with running([toy]) as own:
        several = [started(own, gate) for _ in range(2)]
        process = server(own)
        [worker] = process.children()
        os.kill(worker.pid if victim == "worker" else process.pid, signal.SIGKILL)
        for prediction, events in several:
            error, done = events
            assert (error["event"], done["data"]) == ("error", '{"reason": "error"}')
            failed = own.get(prediction)
            assert (failed["status"], failed["output"]) == ("failed", ["a"])
            assert "broke in mid-prediction (E8765)" in failed["error"]
        assert own.create({"text": "b"}, {"Prefer": "wait"})["status"] == "succeeded"
        assert server(own).pid != process.pid
        psutil.wait_procs([worker], timeout=10)
        assert not worker.is_running()


@pytest.mark.parametrize("victim", ["worker", "server"])
def test_kill_between_predictions(toy: Path, victim: str) -> None:
    """Nobody notices: what never ran is tried again on a fresh runtime."""
    with running([toy]) as own:
        assert own.create({"text": "a"}, {"Prefer": "wait"})["status"] == "succeeded"
        process = server(own)
        [worker], port = process.children(), port_of(process)
        os.kill(worker.pid if victim == "worker" else process.pid, signal.SIGKILL)
        wait_until_noticed(port)
        several = [own.create({"text": "b"}) for _ in range(3)]
        assert [own.ended(prediction)["status"] for prediction in several] == ["succeeded"] * 3
        assert server(own).pid != process.pid


def test_a_model_that_says_it_is_not_well_is_replaced(tmp_path: Path) -> None:
    """coglet itself would go on giving it predictions."""
    check = "    def healthcheck(self) -> bool:\n        return not Path('sick').exists()\n\n"
    directory = make_toy(
        tmp_path / "toy", TEXT.replace("    @concurrent", check + "    @concurrent")
    )
    with running([directory]) as own:
        own.create({"text": "a"}, {"Prefer": "wait"})
        before = server(own).pid
        (directory / "sick").touch()
        own.create({"text": "a"}, {"Prefer": "wait"})
        # It is replaced by one that is not well either,
        failed = own.create({"text": "b"}, {"Prefer": "wait"})
        assert failed["status"] == "failed"
        assert "healthcheck returned False" in failed["error"]
        # and then by one that is.
        (directory / "sick").unlink()
        assert own.create({"text": "b"}, {"Prefer": "wait"})["status"] == "succeeded"
        assert server(own).pid != before


def test_an_idle_runtime_is_stopped_and_started_again(toy: Path) -> None:
    with running([toy], runtime=RuntimeSettings(idle=0.05, grace=5)) as own:
        own.create({"text": "a"}, {"Prefer": "wait"})
        pid = own.gateway.runtime("toy").pid
        with suppress(psutil.NoSuchProcess):
            psutil.wait_procs([psutil.Process(pid)] if pid is not None else [], timeout=20)
        assert own.gateway.runtime("toy").pid is None
        assert own.create({"text": "a"}, {"Prefer": "wait"})["status"] == "succeeded"


def test_setup_that_fails_says_why(tmp_path: Path) -> None:
    source = TEXT.replace('print("warming up")', 'raise RuntimeError("no such weights")')
    directory = make_toy(tmp_path / "toy", source)
    with running([directory]) as own:
        for _ in range(2):
            failed = own.create({"text": "a"}, {"Prefer": "wait"})
            assert failed["status"] == "failed"
            assert "no such weights" in failed["error"]
            assert "(E9243)" in failed["error"]
        (directory / "run.py").write_text(TEXT)
        assert own.create({"text": "a"}, {"Prefer": "wait"})["status"] == "succeeded"


def test_a_runner_that_cannot_be_imported_says_why(tmp_path: Path) -> None:
    directory = make_toy(tmp_path / "toy", "import no_such_module\n" + TEXT)
    with running([directory]) as own:
        failed = own.create({"text": "a"}, {"Prefer": "wait"})
        assert "no_such_module" in failed["error"]


def test_setup_that_hangs_is_given_up(tmp_path: Path) -> None:
    source = TEXT.replace('print("warming up")', "time.sleep(1000)")
    directory = make_toy(tmp_path / "toy", source)
    with running([directory], runtime=RuntimeSettings(setup=1.5, grace=0.3)) as own:
        failed = own.create({"text": "a"}, {"Prefer": "wait"})
        assert failed["status"] == "failed"
        assert "longer than 1.5 s (E6716)" in failed["error"]


def test_leaving_while_the_model_loads_and_while_it_runs(toy: Path, tmp_path: Path) -> None:
    """`running` itself proves that no process is left."""
    slow = make_toy(
        tmp_path / "more" / "slow", TEXT.replace('print("warming up")', "time.sleep(1000)")
    )
    with running([toy, slow], runtime=QUICK) as own:
        loading = own.create({"text": "a"}, model="slow")
        started(own, tmp_path / "gate")
        assert own.get(loading)["status"] == "starting"


def test_temporary_files_of_the_runtime_go_with_it(toy: Path, tmp_path: Path) -> None:
    source = (toy / "run.py").read_text()
    report = "Path('where').write_text(__import__('tempfile').mkdtemp())"
    (toy / "run.py").write_text(source.replace('print("warming up")', report))
    with running([toy]) as own:
        own.create({"text": "a"}, {"Prefer": "wait"})
        made = Path((toy / "where").read_text())
        assert made.is_dir()
    assert not made.parent.exists()


def test_the_model_does_not_see_our_token(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLICATE_API_TOKEN", "r8_secret")
    monkeypatch.setenv("LMTP_REPLICATE_TOKEN", "r8_secret")
    source = (toy / "run.py").read_text()
    dump = "Path('env').write_text(str(dict(__import__('os').environ)))"
    (toy / "run.py").write_text(source.replace('print("warming up")', dump))
    with running([toy]) as own:
        own.create({"text": "a"}, {"Prefer": "wait"})
    assert "r8_secret" not in (toy / "env").read_text()
