"""The runner's core without a runtime, and with a real model on the real one."""

from __future__ import annotations

import gc
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmtp_replicate.errors import ConfigError, EngineError, ProtocolError, StreamError
from lmtp_replicate.protocol.codecs import LineDecoder
from lmtp_replicate.protocol.messages import Info, TokenItem
from lmtp_replicate.serving.cog_runner import CogRunner
from lmtp_replicate.serving.runner_config import RunnerConfig
from lmtp_replicate.serving.text_mode import TextMode
from tests.scripted_engine import EOS, ScriptedEngine, script
from tests.serving.coglet import TEMPLATE, coglet, with_schema
from tests.serving.scripted_runner import Letters
from tests.serving.stepwise_engine import StepwiseEngine

OP = ["GENERATE", {"stream_id": 1, "prompt": [5], "max_tokens": 100}]


def runner_of(engine: ScriptedEngine) -> CogRunner:
    return CogRunner(engine, TextMode(Letters(), [EOS, 63]))


def test_an_unfinished_generator_takes_its_streams_along(stepwise: StepwiseEngine) -> None:
    output = runner_of(stepwise).run(ops_batch_json=json.dumps([OP]))
    stepwise.allow(1)
    next(output)
    del output
    gc.collect()
    stepwise.allow(10)
    after = ["GENERATE", {"stream_id": 1, "prompt": [20], "max_tokens": 3}]
    assert list(runner_of(stepwise).run(ops_batch_json=json.dumps([after])))
    assert stepwise.begun <= 1 + 2 + 3  # the one that was read, at most two more, the other's


def test_ends_of_text_are_not_printed() -> None:
    """Whichever EOS id of the model it is."""
    for end in (EOS, 63):
        engine = ScriptedEngine(script([0, 0, 2, 3, end]))
        try:
            engine._card = engine._card.__class__(
                **{**vars(engine._card), "eos_token_ids": (1, 63)}
            )
            text = "".join(runner_of(engine).run(prompt="a", max_length=3, temperature=0))
        finally:
            engine.close()
        assert text == "ab"


def test_a_completion_that_fails_fails_the_prediction(engine: ScriptedEngine) -> None:
    with pytest.raises(StreamError, match="fills the context"):
        list(runner_of(engine).run(prompt="a" * 600))


def test_a_model_without_a_tokenizer_says_so(engine: ScriptedEngine) -> None:
    with pytest.raises(ProtocolError, match="no tokenizer"):
        CogRunner(engine).run(prompt="a")


def test_an_unknown_encoding_says_so(engine: ScriptedEngine) -> None:
    with pytest.raises(ProtocolError, match=r"encoding.*lmtp-extended"):
        runner_of(engine).run(ops_batch_json="[]", encoding="base64")


def test_after_a_crash_predictions_are_refused(engine: ScriptedEngine) -> None:
    engine.crash("out of memory")
    runner = runner_of(engine)
    assert runner.failure == "out of memory"
    with pytest.raises(EngineError, match="out of memory"):
        runner.run(prompt="a")


def test_a_model_that_cannot_make_a_token_is_found_out_at_start(engine: ScriptedEngine) -> None:
    runner_of(engine).warm_up()
    engine.crash("out of memory")
    with pytest.raises(EngineError, match="out of memory"):
        runner_of(engine).warm_up()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "lmtp-replicate build"),
        ("{", "config.json"),
        ('{"model": "checkpoints", "source": {"repo": "a/b"}, "load": {"dtyp": 1}}', "dtyp"),
    ],
)
def test_a_broken_work_directory_is_a_clear_error(
    text: str | None, reason: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        RunnerConfig.read(tmp_path)


@pytest.fixture
def work_directory(tiny_llama: Path, tmp_path: Path) -> Path:
    """The template as it is, with a real model."""
    folder = tmp_path / "work"
    folder.mkdir()
    with_schema(folder, TEMPLATE.read_text())
    shutil.copytree(tiny_llama, folder / "checkpoints")
    source = {"repo": "org/tiny", "revision": "abc"}
    options = {"dtype": "float32", "pack_linears": "none"}
    config = {"model": "checkpoints", "source": source, "load": options}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


LOADED = """
import gc, sys
from pathlib import Path
from lmtp_replicate.serving.cog_runner import CogRunner

runner = CogRunner.load(Path(sys.argv[1]))
print(gc.get_freeze_count(), len(gc.get_objects()))
"""


@pytest.mark.slow
def test_no_prediction_waits_for_the_collector_to_visit_the_model(work_directory: Path) -> None:
    command = [sys.executable, "-c", LOADED, str(work_directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    kept, visited = map(int, done.stdout.split())
    assert kept > 100_000 > visited


@pytest.mark.slow
async def test_a_work_directory_with_a_real_model(work_directory: Path) -> None:
    """Loaded by the real runtime."""
    folder = work_directory
    ops = [OP, ["MODEL_INFO", {"stream_id": 2}]]
    with coglet(folder) as runtime:
        text = await runtime.answer(prompt="Hello", max_length=8, n=2, seed=3)
        again = await runtime.answer(prompt="Hello", max_length=8, n=2, seed=3)
        answer = await runtime.answer(ops_batch_json=json.dumps(ops))
    assert text["status"] == "succeeded"
    assert "".join(text["output"]) == "".join(again["output"])
    assert "\n--- 2 ---\n" in "".join(text["output"])
    items = LineDecoder().feed("".join(answer["output"]))
    (info,) = [item for item in items if isinstance(item, Info)]
    assert (info.model_info["model"], info.model_info["revision"]) == ("org/tiny", "abc")
    assert info.model_info["details"]["linears"] == "plain"
    found = [item for item in items if isinstance(item, TokenItem)]
    assert len(found) == 100
    assert all(math.isfinite(item.logprob) and item.logprob < 0 for item in found)
