"""What happens behind a work directory's `run.py`, on Cog's runtime.

A prediction is either a batch of LMTP ops (`ops_batch_json`), answered in lines, or a text prompt
(`prompt`), answered in text. `print` inside a prediction's generator is lost and metrics land on
other predictions; so usage is a message, and logs go through `logging` to stderr.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Self

from lmtp_replicate.engine.interface import Engine
from lmtp_replicate.errors import EngineError, ProtocolError
from lmtp_replicate.protocol.codecs import decode_batch, encode_lines
from lmtp_replicate.protocol.messages import Cancel, Dialect, ErrorItem, Generate, Sampling
from lmtp_replicate.serving.prediction import Prediction
from lmtp_replicate.serving.prediction_cancel import watch
from lmtp_replicate.serving.runner_config import RunnerConfig
from lmtp_replicate.serving.text_mode import TextMode, TextRequest


class CogRunner:
    """Answers predictions with one engine; `text` is None where the model has no tokenizer."""

    def __init__(self, engine: Engine, text: TextMode | None = None) -> None:
        self._engine = engine
        self._text = text

    @classmethod
    def load(cls, directory: Path) -> Self:
        """The runner of a work directory: loads its model and makes a first token with it.

        Raises `ConfigError`, `ModelLoadError` or `EngineError` when that cannot be done. Logs go
        to stderr from here on, since Cog's runtime sets up no logging.
        """
        from lmtp_replicate.engine.heap import keep_objects
        from lmtp_replicate.engine.settings import EngineSettings
        from lmtp_replicate.engine.torch_engine import TorchEngine, load_for_engine

        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        config = RunnerConfig.read(directory)
        loaded = load_for_engine(directory / config.model, config.load)
        named = replace(loaded, model_id=config.source.repo, revision=config.source.revision)
        engine = TorchEngine(named, EngineSettings.of(config.load))
        text = None
        if loaded.tokenizer is not None:
            text = TextMode(loaded.tokenizer, loaded.eos_token_ids)
        runner = cls(engine, text)
        runner.warm_up()
        keep_objects()
        return runner

    def warm_up(self) -> None:
        """Make a token, so that the first prediction does not pay for what is done only once.
        Raises `EngineError` when the engine cannot."""
        first = Generate(1, (0,), max_tokens=1)
        for items in Prediction(self._engine, Dialect.EXTENDED).answers([first]):
            for item in items:
                if isinstance(item, ErrorItem):
                    raise EngineError(f"the model's first token failed: {item.error}")

    @property
    def failure(self) -> str | None:
        """Why no prediction can be answered any more, or None while all is well."""
        return self._engine.failure

    def run(
        self,
        *,
        prompt: str | None = None,
        n: int = 1,
        max_length: int = 128,
        temperature: float = 0.75,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        ops_batch_json: str | None = None,
        encoding: str = Dialect.UPSTREAM,
    ) -> Generator[str, None, None]:
        """One prediction: its output in pieces, each as soon as it exists. The inputs are those
        of `run.py`. Closing the generator, or cancelling the prediction on Cog's runtime, takes
        its streams out of the engine.

        Raises `ProtocolError` for inputs that make no sense, `EngineError` when the engine has
        stopped before the prediction began, and in text mode `StreamError`.
        """
        if (failure := self._engine.failure) is not None:
            raise EngineError(f"the model server has stopped: {failure}")
        if bool(prompt) == bool(ops_batch_json):
            raise ProtocolError("give either prompt (text) or ops_batch_json (LMTP), and not both")
        if ops_batch_json:
            dialect = _dialect(encoding)
            prediction = Prediction(self._engine, dialect)
            output = _answer(prediction, ops_batch_json, dialect)
        else:
            sampling = Sampling(temperature, top_k, top_p, seed, repetition_penalty)
            prediction = Prediction(self._engine, Dialect.EXTENDED)
            request = TextRequest(prompt or "", n, max_length, sampling)
            output = self._text_mode().complete(prediction, request)
        watch(output, prediction.cancel)
        return output

    def close(self) -> None:
        """Fail what is running and stop the engine."""
        self._engine.close()

    def _text_mode(self) -> TextMode:
        if self._text is None:
            raise ProtocolError("this model has no tokenizer: use ops_batch_json", field="prompt")
        return self._text


def _dialect(encoding: str) -> Dialect:
    try:
        return Dialect(encoding)
    except ValueError:
        choices = ", ".join(Dialect)
        raise ProtocolError(f"{encoding!r} is not one of {choices}", field="encoding") from None


def _answer(prediction: Prediction, batch: str, dialect: Dialect) -> Generator[str, None, None]:
    # CANCEL can only name a stream of its own batch: there is nothing to cancel yet.
    ops = [op for op in decode_batch(batch) if not isinstance(op, Cancel)]
    with closing(prediction.answers(ops)) as steps:
        for items in steps:
            yield encode_lines(items, dialect)
    if dialect is Dialect.EXTENDED:
        yield encode_lines([prediction.usage()], dialect)
