"""What the layers above may know of an engine. No torch here.

Serving is written and tested against this interface; `tests.scripted_engine.ScriptedEngine` is a
second, torch-free implementation of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lmtp_replicate.protocol.messages import Generate, Score, StreamItem

Sink = Callable[[Sequence[StreamItem]], None]
"""Called on the engine's thread, at most once per step and stream, with that stream's new items.
It must not block and must not raise. The last call's last item satisfies `is_last`."""


class Ticket(Protocol):
    """A submitted stream."""

    def cancel(self) -> None:
        """End the stream at the next step. Any thread; idempotent. The sink gets
        `Ending(finish_reason=CANCELLED)` unless the stream had already ended."""


@dataclass(frozen=True)
class ModelCard:
    """What MODEL_INFO tells about the model and how it is run."""

    model: str
    vocab_size: int
    """Number of ids that can be produced: the tokenizer's length, at most the logits' width."""
    context_length: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None = None
    revision: str | None = None
    architecture: str = ""
    dtype: str = ""
    dtype_reason: str = ""
    quantization: str | None = None
    batch_invariant: bool = True
    path: str = ""
    """"packed" or "fallback"."""
    path_reason: str = ""
    device: str = ""
    tokenizer_fingerprint: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    """Open statistics and settings (pool size, page size, hit tokens ...); JSON-able."""


class Engine(Protocol):
    """One model, many streams."""

    def submit(self, op: Generate | Score, sink: Sink) -> Ticket:
        """Queue the op. Any thread; never blocks and never raises for what is wrong with the op:
        that arrives as an `ErrorItem` on the sink. After `close` or a crash every submit answers
        with an `ErrorItem` too."""

    def info(self) -> ModelCard:
        """The model's card, at once, also while the engine is busy."""

    @property
    def failure(self) -> str | None:
        """Why the engine stopped, or None while it is healthy."""

    def close(self) -> None:
        """Fail all open streams and stop the engine's thread. Idempotent."""
