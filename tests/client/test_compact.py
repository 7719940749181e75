"""What masks and answers cost on the wire, asked in LMQL's way: a `logit_bias` for each op."""

from __future__ import annotations

import asyncio
import json

import pytest

from lmtp_replicate.client import Client, connect
from tests.client.replicate_double import Prediction, ReplicateDouble

ENDPOINT = "replicate:org/model"
VOCABULARY = 128_256
HALF = range(0, VOCABULARY, 2)


async def ask(client: Client, bias: dict[int, float] | None, prompt: int = 5) -> int:
    """The one token of an op."""
    stream = client.generate([prompt], max_tokens=1, logit_bias=bias)
    (item,) = [item async for item in stream]
    return item.token


def input_bytes(prediction: Prediction) -> int:
    """Of the request, in which the batch is a text inside JSON."""
    return len(json.dumps({"input": prediction.input}))


async def test_masks_of_half_a_vocabulary_are_short_and_repeated_ones_are_names(
    replicate: ReplicateDouble,
) -> None:
    forbidden = dict.fromkeys(HALF, -100.0)
    client = connect(f"{ENDPOINT}?memory=off")
    await ask(client, None)  # MODEL_INFO is out of the way
    for masks in ([None], [forbidden], [forbidden, dict(forbidden)]):
        answers = await asyncio.gather(*(ask(client, mask) for mask in masks))
        assert answers == [6 if mask is None else 7 for mask in masks]
    plain, one, two = map(input_bytes, replicate.predictions[1:])
    assert one - plain <= 25_000
    assert two - one - plain <= 200


async def test_a_whitelist_of_half_a_vocabulary_is_as_short(replicate: ReplicateDouble) -> None:
    client = connect(ENDPOINT)
    assert await ask(client, dict.fromkeys(HALF, 100.0), 7) == 8
    assert input_bytes(replicate.predictions[0]) <= 25_000


async def test_switched_off_masks_travel_as_logit_bias(replicate: ReplicateDouble) -> None:
    client = connect(f"{ENDPOINT}?compact=off")
    assert await ask(client, {6: -100, 9: -2.5}) == 7
    (op,) = (
        arguments
        for kind, arguments in json.loads(replicate.predictions[0].input["ops_batch_json"])
        if kind == "GENERATE"
    )
    assert op["logit_bias"] == {"6": -100.0, "9": -2.5}
    assert "mask" not in op


@pytest.mark.parametrize("count", [0, 1, 5])
async def test_as_many_likeliest_ids_come_as_were_asked_for(
    replicate: ReplicateDouble, count: int
) -> None:
    stream = connect(ENDPOINT).generate([5], max_tokens=2, top_logprobs=count)
    assert [len(item.top_logprobs) async for item in stream] == [count, count]
    output = "".join(replicate.predictions[0].output).splitlines()
    sent = [item for line in output if line.startswith("TOKEN") for item in json.loads(line[6:])]
    assert [len(item["top_logprobs"]) for item in sent] == [count, count]
