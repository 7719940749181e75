from __future__ import annotations

import pytest

from lmtp_replicate.client.account import Account, token_from
from lmtp_replicate.errors import AuthenticationError, EndpointError

TOKEN = "r8_very_secret"


def account(base_url: str = "") -> Account:
    return Account.from_environment(
        {"REPLICATE_API_TOKEN": f" {TOKEN}\n", "REPLICATE_BASE_URL": base_url}
    )


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("", "https://api.replicate.com/v1"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000/v1"),
        ("http://127.0.0.1:5000/v1", "http://127.0.0.1:5000/v1"),
        ("http://127.0.0.1:5000/v1/", "http://127.0.0.1:5000/v1"),
        ("https://proxy/replicate/", "https://proxy/replicate/v1"),
        ("https://proxy/replicate/v1", "https://proxy/replicate/v1"),
    ],
)
def test_the_base_url_may_end_in_v1(given: str, used: str) -> None:
    assert account(given).base_url == used


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:5000", "ftp://host", "https://", "yes"),
        *("http://host:port", "http://host:99999", "http://[::1", "http://host/?a=b"),
    ],
)
def test_a_bad_base_url(url: str) -> None:
    with pytest.raises(EndpointError, match="REPLICATE_BASE_URL"):
        account(url)


@pytest.mark.parametrize("environment", [{}, {"REPLICATE_API_TOKEN": " "}])
def test_a_missing_token(environment: dict[str, str]) -> None:
    with pytest.raises(AuthenticationError, match="REPLICATE_API_TOKEN is not set"):
        Account.from_environment(environment)


@pytest.mark.parametrize("token", ["two\nlines", "s€cret"])
def test_what_cannot_be_a_token_is_not_shown(token: str) -> None:
    for variable in ("REPLICATE_API_TOKEN", "LMTP_REPLICATE_TOKEN"):
        with pytest.raises(AuthenticationError, match=f"{variable} is no token") as caught:
            token_from({variable: token}, variable)
        assert token not in str(caught.value)


def test_the_token_is_not_shown() -> None:
    assert TOKEN not in repr(account()) + str(account())
    assert account().masked(f"you sent {TOKEN}!") == "you sent ***!"


@pytest.mark.parametrize(
    ("base", "url", "trusted"),
    [
        ("", "https://api.replicate.com/v1/predictions/x", True),
        ("", "https://stream.replicate.com/v1/streams/x", True),
        ("", "https://streaming-api.svc.us.c.replicate.net/v1/streams/x", True),
        ("", "http://stream.replicate.com/v1/streams/x", False),
        ("", "https://replicate.com.evil.org/x", False),
        ("", "https://evilreplicate.com/x", False),
        ("", "https://evil.org/x?.replicate.com", False),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000/v1/streams/x", True),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5001/v1/streams/x", False),
        ("http://127.0.0.1:5000", "https://127.0.0.1:5000/v1/streams/x", False),
        ("https://proxy:443", "https://proxy/v1/streams/x", True),
    ],
)
def test_the_token_goes_to_replicate_alone(base: str, url: str, trusted: bool) -> None:
    expected = {"Authorization": f"Bearer {TOKEN}"} if trusted else {}
    assert account(base).headers_for(url) == expected
