"""What a query cost, as the account's own list of predictions tells it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lmtp_replicate.errors import TransportError
from lmtp_replicate.protocol.codecs import LineDecoder
from lmtp_replicate.protocol.messages import TokenItem


@dataclass(frozen=True)
class Cost:
    """`seconds` is the wall time of the whole query."""

    predictions: int
    tokens: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.predictions} predictions, {self.tokens} tokens, {self.seconds:.1f} seconds"


async def list_predictions(api: str, token: str) -> list[Mapping[str, Any]]:
    """All predictions of the account, newest first.

    `api` is the base URL without /v1. See https://replicate.com/docs/reference/http#predictions.list
    """
    import aiohttp

    predictions: list[Mapping[str, Any]] = []
    page: str | None = f"{api}/v1/predictions"
    try:
        async with aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {token}"}, raise_for_status=True
        ) as session:
            while page:
                async with session.get(page) as response:
                    body = await response.json()
                predictions += body["results"]
                page = body["next"]
    except aiohttp.ClientError as error:
        raise TransportError(f"the list of predictions could not be read: {error}") from error
    return predictions


def count_tokens(outputs: Iterable[object]) -> int:
    """Tokens generated and scored in predictions' outputs, each a list of chunks of LMTP lines."""
    count = 0
    for output in outputs:
        decoder = LineDecoder()
        chunks = output if isinstance(output, list) else []
        items = [item for chunk in chunks for item in decoder.feed(str(chunk))]
        count += sum(isinstance(item, TokenItem) for item in [*items, *decoder.finish()])
    return count
