"""The client object as LMQL calls it, item by item."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lmtp_replicate.errors import EndpointError, LmtpReplicateError
from lmtp_replicate.lmql.bridge import LMTPReplicateClient
from tests.client.replicate_double import ReplicateDouble
from tests.lmql.alphabet import EOS, OTHER_EOS, logprob, vocabulary

IDS = vocabulary()


class AlphabetTokenizer:
    """What the bridge uses of LMQL's tokenizer."""

    eos_token_id = EOS
    tokenizer_impl = None


def client(endpoint: str = "replicate:org/model") -> LMTPReplicateClient:
    return LMTPReplicateClient("any", None, endpoint, tokenizer=AlphabetTokenizer())


async def read(items: AsyncIterator[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item async for item in items]


async def test_lmqls_keywords_and_items(replicate: ReplicateDouble) -> None:
    used = client()
    await used.check_model()
    items = await read(
        used.generate(
            [None],  # LMQL's empty prompt where the tokenizer has no BOS
            max_tokens=2,
            temperature=0.0,
            logit_bias=None,
            top_logprobs=3,
            length_penalty=1.2,
            repetition_penalty=1.0,
        )
    )
    assert [item["token"] for item in items] == [IDS["a"], IDS["b"]]
    assert all(set(item) == {"token", "logprob", "top_logprobs"} for item in items)
    assert len(items[0]["top_logprobs"]) == 3
    (score,) = await read(used.score([IDS["a"]], [IDS["b"]]))
    assert score["token"] == IDS["b"]
    assert score["logprob"] == pytest.approx(logprob([IDS["a"]], IDS["b"]))
    assert (await used.request("MODEL_INFO", {"model": "any"}))["model_info"]["path"] == "scripted"
    assert not replicate.requests[0].startswith("POST")


async def test_every_end_token_of_the_model_is_the_tokenizers(replicate: ReplicateDouble) -> None:
    (item,) = await read(client().generate([IDS["Ċ"]], max_tokens=1, top_logprobs=64))
    assert item["token"] == EOS
    assert OTHER_EOS not in item["top_logprobs"]
    assert item["top_logprobs"][EOS] == item["logprob"] == max(item["top_logprobs"].values())
    # The same ids in a SCORE are what was asked for.
    (score,) = await read(client().score([IDS["Ċ"]], [OTHER_EOS]))
    assert score["token"] == OTHER_EOS


async def test_nothing_fails_before_the_first_op() -> None:
    wrong = client("replicate:wrong")
    await wrong.check_model()
    with pytest.raises(EndpointError, match="replicate:ORG/MODEL"):
        wrong.generate([2])


async def test_a_stream_that_has_begun_ends_quietly(replicate: ReplicateDouble) -> None:
    """And the next op meets the error itself; a SCORE's error is raised wherever it comes."""
    replicate.engine._step_seconds = 0.02
    used = client()
    stream = used.generate([IDS["a"]], max_tokens=400, logit_bias={OTHER_EOS: -100})
    await anext(stream)
    replicate.engine.crash("out of memory")
    assert len(await asyncio.wait_for(read(stream), 20)) < 300
    with pytest.raises(LmtpReplicateError, match="out of memory"):
        await read(used.generate([IDS["a"]]))
    with pytest.raises(LmtpReplicateError, match="out of memory"):
        await read(used.score([IDS["a"]], [IDS["b"]]))


async def test_after_the_query(replicate: ReplicateDouble) -> None:
    replicate.engine._step_seconds = 0.02
    used = client()
    stream = used.generate([IDS["a"]], max_tokens=400, logit_bias={OTHER_EOS: -100})
    assert math.isfinite((await anext(stream))["logprob"])
    used.close()
    assert await read(stream) == []
    await asyncio.to_thread(replicate.wait_for, lambda: bool(replicate.cancelled))
    with pytest.raises(EndpointError, match="over"):
        used.generate([IDS["a"]])
