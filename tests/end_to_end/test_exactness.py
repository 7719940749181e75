"""Through the whole path, tokens and log probabilities are those of plain transformers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from lmtp_replicate import connect
from lmtp_replicate.client.client import Client
from lmtp_replicate.engine.loading import LoadedModel
from lmtp_replicate.errors import StreamError
from lmtp_replicate.protocol.masks import Mask
from lmtp_replicate.protocol.messages import FinishReason, Generate, Score, StreamItem
from tests.end_to_end.conftest import SECOND_EOS
from tests.engine.oracle import Oracle
from tests.gateway_thread import GatewayThread

pytestmark = pytest.mark.slow

Ops = Sequence[Generate | Score]


@pytest.fixture(params=["replicate", "websocket"])
def endpoint(request: pytest.FixtureRequest, gateway: GatewayThread) -> str:
    if request.param == "replicate":
        return "replicate:local/demo"
    return f"ws://{request.getfixturevalue('served')}"


@pytest.fixture
def oracle(loaded: LoadedModel) -> Oracle:
    return Oracle(loaded.model, loaded, limit=loaded.context_length)


async def answer(client: Client, op: Generate | Score) -> list[StreamItem]:
    if isinstance(op, Score):
        return [item async for item in client.score(op.prompt, op.scored)]
    arguments: dict[str, Any] = {name: getattr(op.sampling, name) for name in PARAMETERS}
    if op.mask is not None:
        arguments["logit_bias"] = op.mask.to_logit_bias()
    stream = client.generate(
        op.prompt, max_tokens=op.max_tokens, top_logprobs=op.top_logprobs, **arguments
    )
    return [item async for item in stream]


PARAMETERS = ("temperature", "top_k", "top_p", "seed", "repetition_penalty")


async def answers(endpoint: str, ops: Ops) -> list[list[StreamItem]]:
    """All at once, so that they share predictions and steps."""
    async with connect(endpoint) as client:
        return await asyncio.gather(*(answer(client, op) for op in ops))


def some_prompts(loaded: LoadedModel, count: int) -> list[tuple[int, ...]]:
    random = Random(7)
    text = loaded.tokenizer("Review: The room was clean. Q: What is the").input_ids
    noise = [
        tuple(random.randrange(loaded.vocab_size) for _ in range(random.randrange(1, 80)))
        for _ in range(count - 2)
    ]
    return [(), tuple(text), *noise]


async def test_generations_and_scores(endpoint: str, loaded: LoadedModel, oracle: Oracle) -> None:
    prompts = some_prompts(loaded, 12)
    beyond = loaded.vocab_size + 3
    masks = [
        None,
        Mask.from_logit_bias({5: 100.0, 17: 100.0, 300: 100.0, beyond: 100.0}),
        Mask.from_logit_bias(dict.fromkeys(range(0, loaded.vocab_size, 2), -100.0)),
    ]
    ops: list[Generate | Score] = []
    for index, prompt in enumerate(prompts):
        ops.append(Generate(0, prompt, 12, mask=masks[index % 3], top_logprobs=1 + index % 4))
        ops.append(Score(0, prompt, prompts[(index + 3) % len(prompts)] or (3,)))
    for op, items in zip(ops, await answers(endpoint, ops), strict=True):
        oracle.check(op, items)
    oracle.assert_few_ties()


async def test_a_prompt_may_leave_room_for_one_token_but_not_for_none(
    endpoint: str, loaded: LoadedModel, oracle: Oracle
) -> None:
    full = (9,) * loaded.context_length
    op = Generate(0, full[1:], 5)
    [items] = await answers(endpoint, [op])
    oracle.check(op, items)
    assert len(items) == 1
    assert items[0].finish_reason is not None  # type: ignore[union-attr]
    with pytest.raises(StreamError, match="context"):
        await answers(endpoint, [Generate(0, full, 1)])


async def test_a_whitelist_outside_the_vocabulary_leaves_nothing(
    endpoint: str, loaded: LoadedModel
) -> None:
    mask = Mask.from_logit_bias({loaded.vocab_size + 1: 100.0})
    with pytest.raises(StreamError, match=r"mask|logit_bias"):
        await answers(endpoint, [Generate(0, (5,), 1, mask=mask)])


async def test_each_of_several_eos_ids_ends_a_stream(
    gateway: GatewayThread, loaded: LoadedModel
) -> None:
    """Of the model and of the model alone: LMQL's tokenizer knows only one of them."""
    for eos in (*loaded.eos_token_ids, SECOND_EOS):
        mask = Mask.from_logit_bias({eos: 100.0})
        [items] = await answers("replicate:local/two-eos", [Generate(0, (5,), 9, mask=mask)])
        assert [(i.token, i.finish_reason) for i in items] == [(eos, FinishReason.STOP)]  # type: ignore[union-attr]
