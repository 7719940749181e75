"""What LMQL's ops ask of the model, as it travels."""

from __future__ import annotations

import json

import lmql
import pytest

import lmtp_replicate  # noqa: F401 - the plug-in
from tests.client.replicate_double import ReplicateDouble


@pytest.mark.parametrize(
    ("decoder", "best"), [("argmax", 1), ("sample(n=2, temperature=0.7)", 1), ("beam(n=3)", 3)]
)
def test_no_more_likeliest_ids_than_the_decoder_uses(
    replicate: ReplicateDouble, tokenizer: str, decoder: str, best: int
) -> None:
    model = lmql.model("replicate:org/model", tokenizer=tokenizer)
    lmql.run_sync(f'{decoder} "ab[X]" where len(TOKENS(X)) < 4', model=model)
    ops = [op for p in replicate.predictions for op in json.loads(p.input["ops_batch_json"])]
    assert {op["top_logprobs"] for kind, op in ops if kind == "GENERATE"} == {best}
