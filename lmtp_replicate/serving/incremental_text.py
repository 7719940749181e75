"""Tokens to text, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

CONTEXT = 5
"""So many tokens of the prompt are decoded along, for tokenizers that treat a start specially."""
BROKEN = "\N{REPLACEMENT CHARACTER}"


class Tokenizer(Protocol):
    """What text mode needs of a transformers tokenizer."""

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, with the special tokens a prompt begins with."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of the ids."""


class IncrementalText:
    """Decodes a growing sequence of tokens. What comes out, joined, is the text that decoding
    prompt and tokens at once has after the prompt.

    A token alone has no text: characters may span tokens, and a tokenizer may strip the space at
    the start of what it decodes. So the tokens since the last border are decoded together with
    those before it, and only what is complete comes out.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(prompt[-CONTEXT:])
        self._before = self._decode(self._tokens)
        """The text of the tokens up to `_border`, which has come out already."""
        self._border = len(self._tokens)

    def add(self, token: int) -> str:
        """The text that is complete with `token`; may be empty."""
        self._tokens.append(token)
        return self._take(complete=False)

    def finish(self) -> str:
        """The rest, also where a character has stayed incomplete."""
        return self._take(complete=True)

    def _take(self, *, complete: bool) -> str:
        text = self._decode(self._tokens)
        if not complete and (text.endswith(BROKEN) or len(text) <= len(self._before)):
            return ""
        new = text[len(self._before) :]
        # The last piece stays as the context of the next one.
        self._tokens = self._tokens[self._border :]
        self._before = self._decode(self._tokens)
        self._border = len(self._tokens)
        return new

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)
