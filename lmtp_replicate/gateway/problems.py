"""Error answers in the form of Replicate's API (like RFC 7807, `application/problem+json`)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from aiohttp import web

from lmtp_replicate.errors import LmtpReplicateError
from lmtp_replicate.gateway.input_schema import InvalidField, problem_text

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ProblemError(LmtpReplicateError):
    """An answer with an error status; `more` are further members of its body."""

    def __init__(
        self,
        status: int,
        detail: str,
        title: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self._headers = headers
        self._body = ({"title": title} if title else {}) | {
            "detail": detail,
            "status": status,
            **more,
        }

    def answer(self) -> web.Response:
        """The HTTP response."""
        return web.json_response(
            self._body,
            status=self.status,
            headers=self._headers,
            content_type="application/problem+json",
        )


def not_found() -> ProblemError:
    """404: unknown, or not this account's."""
    return ProblemError(404, "The requested resource could not be found.")


def unauthenticated() -> ProblemError:
    """401: no token or another one."""
    return ProblemError(401, "You did not pass a valid authentication token", "Unauthenticated")


def unknown_version() -> ProblemError:
    """422: `version` names none of ours."""
    return ProblemError(
        422,
        "The specified version does not exist (or perhaps you don't have permission to use it?)",
        "Invalid version or not permitted",
    )


def throttled(
    detail: str, retry_after: int, headers: Mapping[str, str] | None = None
) -> ProblemError:
    """429: come back in `retry_after` seconds."""
    return ProblemError(429, detail, headers=headers, retry_after=retry_after)


def invalid_input(invalid: Sequence[InvalidField]) -> ProblemError:
    """422: what is wrong with which field."""
    return ProblemError(
        422,
        problem_text(invalid),
        "Input validation failed",
        invalid_fields=[asdict(field) for field in invalid],
    )


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error leaves as a problem; an unexpected one is logged and says nothing about us."""
    try:
        return await handler(request)
    except ProblemError as problem:
        return problem.answer()
    except web.HTTPNotFound:
        return not_found().answer()
    except web.HTTPException as error:
        return ProblemError(error.status, error.reason).answer()
    except ConnectionError:
        raise  # the client is gone
    except Exception:
        logger.exception("%s %s failed", request.method, request.path)
        return ProblemError(500, "Internal server error").answer()
