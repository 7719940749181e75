"""Serves a prediction's events to any number of readers, each at its own place."""

from __future__ import annotations

from contextlib import suppress

from aiohttp import web

from lmtp_replicate.gateway.faults import Faults
from lmtp_replicate.gateway.prediction import Prediction

PING_SECONDS = 15.0
"""Clients and proxies give a silent connection up after 30 seconds or so."""
_TIMEOUT = b":408: 408 Request Timeout\n\n"


async def serve_stream(
    request: web.Request, prediction: Prediction, faults: Faults
) -> web.StreamResponse:
    """Everything after the request's `Last-Event-ID` (without one: from the start), then live."""
    await faults.before_stream()
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    )
    last_seen = None if faults.replay_all else request.headers.get("Last-Event-ID")
    with suppress(ConnectionResetError):  # readers leave when they have what they want
        await response.prepare(request)
        await response.write(b": hi\n\n")
        await _follow(response, prediction, prediction.events.place_after(last_seen), faults)
        await response.write_eof()
    return response


async def _follow(
    response: web.StreamResponse, prediction: Prediction, place: int, faults: Faults
) -> None:
    events = prediction.events
    allowed = faults.end_stream_after
    while not prediction.data_removed:
        fresh = events.since(place)[:allowed]
        if fresh:
            await response.write(b"".join(fresh))
            place += len(fresh)
        if allowed is not None:
            allowed -= len(fresh)
            if allowed == 0:
                return
        if events.closed and place == len(events):
            return
        if await events.wait(place, faults.idle_seconds or PING_SECONDS):
            continue
        if faults.idle_seconds:
            break
        await response.write(b": ping\n\n")
    await response.write(_TIMEOUT)
