"""Piece by piece the same text as all at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lmtp_replicate.serving.incremental_text import IncrementalText
from tests.engine.tiny_tokenizer import tiny_tokenizer

BYTES = tiny_tokenizer(("<|start|>",))


def words_with_leading_spaces() -> PreTrainedTokenizerFast:
    """As sentencepiece's: the space belongs to the word, and is lost at the start of a text."""
    words = ["<unk>", "<s>", "</s>", "▁Hello", "▁you", "▁", "there", ".", "▁are", "s"]
    words += [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


WORDS = words_with_leading_spaces()


def pieces(tokenizer: PreTrainedTokenizerFast, prompt: list[int], tokens: list[int]) -> list[str]:
    text = IncrementalText(tokenizer, prompt)
    return [*(text.add(token) for token in tokens), text.finish()]


@given(text=st.text(max_size=30), prompt=st.text(max_size=8))
def test_any_text_in_bytes_comes_out_whole_and_never_broken(text: str, prompt: str) -> None:
    found = pieces(BYTES, BYTES.encode(prompt), BYTES.encode(text))
    assert "".join(found) == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in found)


@given(tokens=st.lists(st.sampled_from([3, 4, 5, 6, 7, 8, 9]), max_size=12))
def test_spaces_between_words_survive(tokens: list[int]) -> None:
    prompt = [1, 3]
    whole = WORDS.decode([*prompt, *tokens], skip_special_tokens=True)
    assert "".join(pieces(WORDS, prompt, tokens)) == whole.removeprefix("Hello")


@given(text=st.text(alphabet="aé€😀", max_size=8))
def test_byte_fallback_waits_for_the_whole_character(text: str) -> None:
    tokens = [10 + byte for byte in text.encode()]
    found = pieces(WORDS, [1, 3], tokens)
    assert "".join(found) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in found)


def test_text_comes_as_soon_as_it_is_complete() -> None:
    text = IncrementalText(BYTES, BYTES.encode("x"))
    euro = BYTES.encode("€")
    assert [text.add(token) for token in (*BYTES.encode("ab"), *euro)] == ["a", "b", "", "", "€"]
    assert text.finish() == ""


def test_an_incomplete_character_at_the_end_is_shown_as_such() -> None:
    text = IncrementalText(BYTES, [])
    assert text.add(BYTES.encode("€")[0]) == ""
    assert text.finish() == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("prompt", [[], [257]])
def test_special_tokens_are_not_printed(prompt: list[int]) -> None:
    assert "".join(pieces(BYTES, prompt, [*BYTES.encode("a"), 256, *BYTES.encode("b")])) == "ab"
