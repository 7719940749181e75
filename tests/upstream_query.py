"""A process of its own that runs a query with LMQL exactly as released: nothing of ours imported.

Usage: upstream_query.py [GATEWAY] < query. LMQL's own Replicate client knows only Replicate's
address, so requests to it are led to GATEWAY. Prints the query's variables as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import aiohttp
import lmql


def lead_to(gateway: str) -> None:
    """Have all requests to Replicate go to `gateway`."""
    request = aiohttp.ClientSession._request

    async def redirected(
        self: aiohttp.ClientSession, method: str, url: Any, **kwargs: Any
    ) -> aiohttp.ClientResponse:
        address = str(url).replace("https://api.replicate.com", gateway)
        return await request(self, method, address, **kwargs)

    aiohttp.ClientSession._request = redirected  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        lead_to(sys.argv[1])
    result = lmql.run_sync(sys.stdin.read())
    assert not any(name.startswith("lmtp_replicate.") for name in sys.modules)
    sys.stdout.write("\n" + json.dumps(result.variables, default=str) + "\n")
