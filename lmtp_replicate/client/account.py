"""Which Replicate is talked to, and with which token.

Both come from the environment variables that Replicate's own clients use: REPLICATE_API_TOKEN and
REPLICATE_BASE_URL (with or without the final ``/v1``; a path prefix is kept).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, urlsplit

from lmtp_replicate.errors import AuthenticationError, EndpointError

REPLICATE: Final = "https://api.replicate.com"
_REPLICATE_DOMAINS = (".replicate.com", ".replicate.net")


@dataclass(frozen=True)
class Account:
    """An API base URL (ends in ``/v1``) and the token for it; the token is not in the repr."""

    base_url: str
    token: str = field(repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Account:
        """Raises `AuthenticationError` without a token, `EndpointError` for a bad base URL."""
        base_url = environment.get("REPLICATE_BASE_URL", "").strip() or REPLICATE
        if not _is_base_url(base_url):
            raise EndpointError(
                f"REPLICATE_BASE_URL is {base_url!r}; it must look like {REPLICATE} or "
                "http://127.0.0.1:8000"
            )
        token = token_from(environment, "REPLICATE_API_TOKEN")
        if token is None:
            raise AuthenticationError(
                "REPLICATE_API_TOKEN is not set. Create a token at "
                "https://replicate.com/account/api-tokens and export it; for a local gateway, "
                "export the token that it printed."
            )
        return cls(base_url.rstrip("/").removesuffix("/v1").rstrip("/") + "/v1", token)

    def headers_for(self, url: str) -> dict[str, str]:
        """The token's header, but only for the API itself and Replicate's own hosts: a stream
        URL may lead anywhere, and there the URL alone is the permission."""
        target, api = urlsplit(url), urlsplit(self.base_url)
        trusted = _origin(target) == _origin(api) or (
            target.scheme == "https" and (target.hostname or "").endswith(_REPLICATE_DOMAINS)
        )
        return {"Authorization": f"Bearer {self.token}"} if trusted else {}

    def masked(self, text: str) -> str:
        """`text` without the token, should a server have quoted it."""
        return text.replace(self.token, "***")


def token_from(environment: Mapping[str, str], variable: str) -> str | None:
    """The token that `variable` holds; None when it is not set or empty. Raises
    `AuthenticationError`, which does not show it, for what no header can carry."""
    token = environment.get(variable, "").strip()
    if token and not re.fullmatch(r"[ -~]+", token):
        raise AuthenticationError(
            f"{variable} is no token: it holds line breaks or letters that are not ASCII; copy the "
            "token once more"
        )
    return token or None


def _is_base_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        is_reachable = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, half an IPv6 address
        return False
    return is_reachable and parts.scheme in ("http", "https") and not parts.query + parts.fragment


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    return url.scheme, url.hostname, url.port or {"http": 80, "https": 443}.get(url.scheme)
