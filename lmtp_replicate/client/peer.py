"""What the hub needs of an endpoint, whatever it is made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from lmtp_replicate.client.batch import Batch
from lmtp_replicate.client.memory import Memory
from lmtp_replicate.client.settings import Savings
from lmtp_replicate.client.stats import Tally
from lmtp_replicate.protocol.batch_size import BatchSize


class Throttled(Exception):  # noqa: N818 - no failure: the batch is to be tried again
    """The peer took nothing of a batch, and wants it later."""


@dataclass(frozen=True)
class Turn:
    """What a peer grants to one batch.

    size: of an empty one. window: seconds for which ops may wait for company while others are in
    flight. run: have the batch answered; lasts until nothing of it is left on the server's side,
    and gives every stream its end, or raises `Throttled`. give_up: there will be no batch.
    """

    size: BatchSize
    window: float
    run: Callable[[Batch], Awaitable[None]]
    give_up: Callable[[], None]


class Peer(Protocol):
    """One endpoint, seen through one account."""

    @property
    def label(self) -> str:
        """What messages and traces call it."""

    @property
    def tally(self) -> Tally:
        """Where its costs are counted."""

    @property
    def info(self) -> Mapping[str, Any] | None:
        """The answer to MODEL_INFO, once known."""

    @property
    def savings(self) -> Savings:
        """Which means of saving predictions may be used."""

    @property
    def memory(self) -> Memory:
        """What its model has said."""

    async def turn(self) -> Turn:
        """Wait until one more batch may be sent. Raises `LmtpReplicateError` when none can be."""

    async def close(self) -> None:
        """Give up the connections. No batch is running."""
