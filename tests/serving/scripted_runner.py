"""A `CogRunner` without a model, for the real Cog runtime; its engine tells what it does.

Everything happens in files of one folder, so that a test in another process can prove an order
without looking at a clock:

- `tokens.log` gets a line `TAG LENGTH` for each token that is about to be made, where TAG is the
  first id of the stream's prompt and LENGTH that of its context.
- A named pipe `hold-TAG-LENGTH` holds the engine before that token, until someone has opened the
  pipe for writing and closed it again.
- A file `crash-TAG-LENGTH` makes the engine fail there, with the file's text as the reason;
  a file `die-TAG-LENGTH` kills the worker process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from lmtp_replicate.serving.cog_runner import CogRunner
from lmtp_replicate.serving.text_mode import TextMode
from tests.scripted_engine import EOS, ScriptedEngine, counting
from tests.serving.letters import LETTERS


class Letters:
    """A tokenizer: id 2 + i is the i-th letter; 1 and 0 are special."""

    def encode(self, text: str) -> list[int]:
        return [0, *(2 + LETTERS.index(letter) for letter in text)]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return "".join(LETTERS[token - 2] for token in token_ids if token >= 2)


class RecordedEngine(ScriptedEngine):
    """See the module; `folder` is the one of the files."""

    def __init__(self, folder: Path) -> None:
        super().__init__(self._recorded, context_length=2048)
        self._folder = folder
        self._tokens = (folder / "tokens.log").open("a", buffering=1)

    def _recorded(self, context: Sequence[int]) -> list[float]:
        place = f"{context[0]}-{len(context)}"
        print(context[0], len(context), file=self._tokens)
        if (hold := self._folder / f"hold-{place}").exists():
            hold.read_bytes()
        if (self._folder / f"die-{place}").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if (crash := self._folder / f"crash-{place}").exists():
            self.crash(crash.read_text())
        return counting(context)


def scripted_runner(folder: Path) -> CogRunner:
    """A runner whose engine is recorded in `folder`."""
    return CogRunner(RecordedEngine(folder), TextMode(Letters(), [EOS]))
