"""An engine that stands still at a place in the text, until the test lets it go on."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from tests.lmql.alphabet import AlphabetEngine, vocabulary


class Hold:
    """Holds `engine`, with all its streams, as soon as one has written `letter`."""

    def __init__(self, engine: AlphabetEngine, letter: str) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        logits, token = engine._logits, vocabulary()[letter]

        def hold(context: Sequence[int]) -> Sequence[float]:
            if context and context[-1] == token:
                self.reached.set()
                self.go_on.wait(30)
            return logits(context)

        engine._logits = hold  # type: ignore[method-assign]
