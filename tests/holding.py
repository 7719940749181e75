"""An engine that stands still at a place in the text, until the test lets it go on."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from tests.scripted_engine import ScriptedEngine


class Hold:
    """Holds `engine`, with all its streams, as soon as one has written `token`."""

    def __init__(self, engine: ScriptedEngine, token: int) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        logits = engine._logits

        def hold(context: Sequence[int]) -> Sequence[float]:
            if context and context[-1] == token:
                self.reached.set()
                self.go_on.wait(30)
            return logits(context)

        engine._logits = hold  # type: ignore[method-assign]
