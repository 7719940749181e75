"""Runs LMQL queries with LMQL's own Replicate client, exactly as released, or with ours."""

from __future__ import annotations

import asyncio
import os
import sys
from time import perf_counter

import lmql
from jobs import serve


class Queries:
    """client: "ours" or "upstream". gateway: where requests to Replicate are led."""

    def __init__(self, client: str, gateway: str, endpoint: str, tokenizer: str) -> None:
        self._is_ours = client == "ours"
        if self._is_ours:
            os.environ["REPLICATE_BASE_URL"] = gateway
            import lmtp_replicate  # noqa: F401 - the plug-in
        else:
            from tests.upstream_query import lead_to

            lead_to(gateway)
        self._model = lmql.model(endpoint, tokenizer=tokenizer)

    def query(self, codes: list[str], patience: float) -> dict:
        """Run all `codes` at once; their variables, by result. No answer after `patience` seconds
        is an answer too."""
        if self._is_ours:
            from lmtp_replicate.client.hub import close_process_hub

            close_process_hub()  # so that nothing is known from earlier queries
        try:
            return asyncio.run(self._run(codes, patience))
        except TimeoutError:
            return {"timed_out": True}
        finally:
            assert self._is_ours or not any(n.startswith("lmtp_replicate.") for n in sys.modules)

    async def _run(self, codes: list[str], patience: float) -> dict:
        started = perf_counter()
        async with asyncio.timeout(patience):
            answers = await asyncio.gather(*(lmql.run(code, model=self._model) for code in codes))
        wall = perf_counter() - started
        results = [one for each in answers for one in (each if isinstance(each, list) else [each])]
        return {"variables": [repr(result.variables) for result in results], "wall": wall}


if __name__ == "__main__":
    serve(Queries(*sys.argv[1:]))
