"""What queries have cost, countable at any time: `lmtp_replicate.stats()`."""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass, fields, replace

from lmtp_replicate.client.endpoint import Endpoint, ReplicateEndpoint, parse_endpoint
from lmtp_replicate.client.settings import Patience, Savings


@dataclass(frozen=True)
class Stats:
    """Counts of this process, or of a part of what it did. Subtract an earlier one to see what
    happened between the two."""

    ops: int = 0
    """Asked for by queries: GENERATE and SCORE."""
    from_memory: int = 0
    """Of `ops`, those answered without asking the server, from what it had told before."""
    joined: int = 0
    """Of `ops`, those that shared the answer of one in flight, or a part of it."""
    predictions: int = 0
    """Accepted by Replicate: what is billed and what the limit of creates a minute counts."""
    tokens_requested: int = 0
    """`max_tokens` of the GENERATEs and scored tokens of the SCOREs that were sent."""
    tokens_received: int = 0
    """Sent by servers."""
    tokens_used: int = 0
    """Handed to a reader that still wanted them, wherever they came from."""
    gpu_seconds: float = 0.0
    """`metrics.predict_time` of predictions where an answer of Replicate told it, else how long
    our server says it worked on them. Nothing is asked for it in addition."""
    predictions_timed: int = 0
    """Of `predictions`, those that `gpu_seconds` knows of. Running ones come when they end."""
    bytes_sent: int = 0
    """Bodies of requests, websocket frames; without headers."""
    bytes_received: int = 0
    """Bodies of answers, events, websocket frames; without headers."""
    retries: int = 0
    """Requests that were sent again after a failure or a refusal."""
    creates_delayed: int = 0
    """Creates that waited because of Replicate's limit on creates a minute."""

    def __str__(self) -> str:
        """One line for people."""
        parts = [f"predictions {self.predictions}, ops {self.ops}"]
        spared = {"from memory": self.from_memory, "joined": self.joined}
        parts += [f"{what} {count}" for what, count in spared.items() if count]
        parts.append(
            f"tokens {self.tokens_requested} requested, {self.tokens_received} received, "
            f"{self.tokens_used} used"
        )
        known = (
            ""
            if self.predictions_timed >= self.predictions
            else f" ({self.predictions_timed} of {self.predictions} predictions)"
        )
        parts.append(f"GPU seconds {self.gpu_seconds:.1f}{known}")
        parts.append(f"bytes {self.bytes_sent} sent, {self.bytes_received} received")
        waits = {"retries": self.retries, "creates delayed": self.creates_delayed}
        parts += [f"{what} {count}" for what, count in waits.items() if count]
        return "; ".join(parts)

    def __add__(self, other: Stats) -> Stats:
        return Stats(*(a + b for a, b in zip(_values(self), _values(other), strict=True)))

    def __sub__(self, other: Stats) -> Stats:
        return Stats(*(a - b for a, b in zip(_values(self), _values(other), strict=True)))


_NAMES = tuple(field.name for field in fields(Stats))


def _values(stats: Stats) -> list[int]:
    known = stats.__dict__
    return [known[name] for name in _NAMES]


class Tally:
    """Counts on, on the hub's thread alone; `stats` may be read from any."""

    def __init__(self) -> None:
        self._others = Stats()
        # Tokens come one by one, thousands a second: they are counted apart, which is cheaper.
        self.tokens_received = 0
        self.tokens_used = 0

    def add(self, change: Stats) -> None:
        """Count `change`."""
        self._others += change

    @property
    def stats(self) -> Stats:
        """What was counted so far."""
        tokens = Stats(tokens_received=self.tokens_received, tokens_used=self.tokens_used)
        return self._others + tokens


_endpoints: dict[Hashable, Tally] = {}
os.register_at_fork(after_in_child=_endpoints.clear)


def tally_of(endpoint: Endpoint) -> Tally:
    """The process's one tally of `endpoint`, whatever its settings."""
    if isinstance(endpoint, ReplicateEndpoint):
        endpoint = replace(endpoint, patience=Patience(), savings=Savings())
    return _endpoints.setdefault(endpoint, Tally())


def stats(endpoint: str | None = None, *, model: str | None = None) -> Stats:
    """What this process has asked for and got since it began (a forked one: since the fork), of
    all endpoints or of one, which is spelled as for `connect`. Cheap; any thread.

    Raises `EndpointError` for a wrong spelling.
    """
    if endpoint is not None:
        return tally_of(parse_endpoint(endpoint, model=model)).stats
    return sum((tally.stats for tally in list(_endpoints.values())), Stats())
