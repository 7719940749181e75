"""The shipped demo model: small, and right about reviews it has never seen."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from lmtp_replicate.demo.query import REVIEW
from lmtp_replicate.demo.workspace import SHIPPED_MODEL
from scripts.demo_model.evaluation import accuracy, classify
from scripts.demo_model.reviews import Example, make_example

HELD_OUT = 400
OWN_WORDS = {
    REVIEW: "positive",
    "Terrible. The room was dirty, the staff were rude and we will never come back.": "negative",
    "The food was cold and the waiter was rude. I would not recommend this place.": "negative",
    "We stayed for two nights. The room was average and breakfast was okay.": "neutral",
    "great food and friendly staff, we will be back": "positive",
    "The food was not good.": "negative",
    "The room was clean but the food was awful.": "neutral",
}


@pytest.fixture(scope="module")
def model() -> Iterator[torch.nn.Module]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield AutoModelForCausalLM.from_pretrained(SHIPPED_MODEL, dtype="auto").eval()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return AutoTokenizer.from_pretrained(SHIPPED_MODEL)


@pytest.mark.slow
def test_held_out_reviews_are_classified(model, tokenizer) -> None:
    """By way of the model's own analysis; no noun-adjective pair of these was trained on."""
    rng = random.Random("the test's own")
    examples = [make_example(rng, held_out=True) for _ in range(HELD_OUT)]
    assert {example.label for example in examples} == {"positive", "negative", "neutral"}
    assert accuracy(model, tokenizer, examples) >= 0.95


def test_reviews_as_people_write_them(model, tokenizer) -> None:
    examples = [Example(review, "", label) for review, label in OWN_WORDS.items()]
    written = classify(model, tokenizer, examples)
    assert {e.review: label for e, (_, label) in zip(examples, written, strict=True)} == OWN_WORDS
    assert "fabulous" in written[0][0], "the analysis cites what was praised"
    assert "dirty" in written[1][0], "the analysis cites what was criticised"
    assert all(analysis.endswith("\n") for analysis, _ in written)


def test_it_is_small_and_float32(model) -> None:
    assert sum(path.stat().st_size for path in SHIPPED_MODEL.rglob("*")) <= 5_000_000
    assert 1_000_000 <= model.num_parameters() <= 3_000_000
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (SHIPPED_MODEL / "README.md").is_file()


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_the_tokenizer(tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text) == [tokenizer.bos_token_id, *ids]


def test_what_the_query_needs_of_the_tokenizer(tokenizer) -> None:
    newline = tokenizer.encode("\n", add_special_tokens=False)
    assert tokenizer.encode(".\n\n\nQ", add_special_tokens=False)[1:4] == newline * 3
    for option in (" positive", " negative", " neutral"):
        assert len(tokenizer.encode(option, add_special_tokens=False)) == 1
    assert tokenizer.bos_token_id != tokenizer.eos_token_id


def test_lmqls_own_tokenizer_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through LMQL's wrapper, which works on ids and strings of its own making."""
    monkeypatch.setattr("lmql.runtime.caching.CACHE_DIR", tmp_path / "lmql")
    from lmql.runtime.tokenizer import LMQLTokenizer, tokenizer

    wrapped: LMQLTokenizer = tokenizer(str(SHIPPED_MODEL))
    text = "Review: Ça va ?\n\nA: “good”\n"
    ids = wrapped(text)["input_ids"]
    assert wrapped.decode(ids) == text
    assert wrapped.convert_bytes_to_string(wrapped.decode_bytes(ids)) == text
    assert "".join(map(wrapped.decode, ([i] for i in wrapped("plain text")["input_ids"])))
    assert wrapped.bos_token_id is not None
    assert wrapped.eos_token_id is not None
