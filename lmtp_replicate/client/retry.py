"""Whether and when a failed request is tried again, as a pure function."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 30.0
LONGEST_REQUESTED_DELAY: Final = 120.0
MOST_ATTEMPTS: Final = 8
_IN_DETAIL = re.compile(r"in\s+~?(\d+(?:\.\d+)?)\s*s\b")


@dataclass(frozen=True)
class Failure:
    """What became of a request.

    status: the answer's; None when no answer came. was_sent: False when the peer cannot have seen
    the request. retry_after: seconds the peer asked for.
    """

    status: int | None = None
    was_sent: bool = True
    retry_after: float | None = None


def delay_before_retry(
    failure: Failure, attempt: int, *, repeatable: bool, jitter: float
) -> float | None:
    """Seconds to wait before attempt `attempt + 1` (the first is 1), or None: give up.

    repeatable: doing it twice is harmless (GET, cancel). Anything else is sent again only when it
    cannot have been accepted: it never left, or it was refused by 429, by 503, or by another 5xx
    that asks for a retry. jitter: a draw from [0, 1).
    """
    if attempt >= MOST_ATTEMPTS or not _may_repeat(failure, repeatable):
        return None
    if failure.retry_after is not None:
        if failure.retry_after > LONGEST_REQUESTED_DELAY:
            return None
        return failure.retry_after + 0.1 * jitter
    return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** (attempt - 1)) * (0.5 + 0.5 * jitter)


def _may_repeat(failure: Failure, repeatable: bool) -> bool:
    if failure.status is None:
        return repeatable or not failure.was_sent
    if failure.status in (429, 503):
        return True
    return failure.status >= 500 and (repeatable or failure.retry_after is not None)


def requested_delay(headers: Mapping[str, str], body: Any, now: datetime) -> float | None:
    """The seconds a refusal asks for: `Retry-After` (seconds or a date), else the body's
    `retry_after`, else the "in ~30s" of its detail."""
    header = headers.get("Retry-After", "").strip()
    if header:
        return _seconds(header) if _seconds(header) is not None else _until(header, now)
    if isinstance(body, Mapping):
        stated = _seconds(body.get("retry_after"))
        if stated is not None:
            return stated
        found = _IN_DETAIL.search(str(body.get("detail", "")))
        return float(found[1]) if found else None
    return None


def _seconds(value: object) -> float | None:
    try:
        seconds = float(value)  # type: ignore[arg-type]  # anything else is a TypeError
    except (TypeError, ValueError):
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _until(date: str, now: datetime) -> float | None:
    try:
        then = parsedate_to_datetime(date)
    except ValueError:
        return None
    return max(0.0, (then.replace(tzinfo=then.tzinfo or UTC) - now).total_seconds())
