"""An engine that stands still at a letter."""

from __future__ import annotations

from tests import holding
from tests.lmql.alphabet import AlphabetEngine, vocabulary


class Hold(holding.Hold):
    """Holds `engine`, with all its streams, as soon as one has written `letter`."""

    def __init__(self, engine: AlphabetEngine, letter: str) -> None:
        super().__init__(engine, vocabulary()[letter])
