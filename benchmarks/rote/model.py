"""A language model without weights: where the text so far stands in what it knows by heart, it
likes the continuation best.

Its answers make sense for every query of `benchmarks.queries`, whatever tokens the text is cut
into and wherever a mask has forced another turn; and they depend on every token of the context,
so that an answer to another context is noticed.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.queries import END, TEXTS
from lmtp_replicate.demo.workspace import SHIPPED_MODEL
from lmtp_replicate.protocol.fingerprint import tokenizer_fingerprint

TOKENIZER: Path = SHIPPED_MODEL
"""The tokenizer, 2048 tokens; the shipped model can thus be asked the same queries."""
LONGEST_MATCH = 48
LIKING = 8.0
SEED = 20261125

Row = NDArray[np.float64]


class RoteModel:
    """`pieces`: the text of each id; special ones have none. `fingerprint`: the tokenizer's."""

    def __init__(
        self, pieces: Sequence[str], *, bos: int, eos: int, fingerprint: str, texts: Sequence[str]
    ) -> None:
        self.pieces = pieces
        self.bos, self.eos = bos, eos
        self.fingerprint = fingerprint
        self._known = "\n".join(texts)
        self._ids = {piece: token for token, piece in enumerate(pieces) if piece}
        self._longest = max(map(len, self._ids))
        self._noise = np.random.default_rng(SEED).uniform(-3, 0, len(pieces))

    def logprobs(self, context: Sequence[int]) -> Row:
        """Natural log probability of every id after `context`, without a mask."""
        return log_softmax(self.logits(context))

    def logits(self, context: Sequence[int]) -> Row:
        """One number an id, exactly representable in float32."""
        digest = zlib.crc32(np.asarray(context, dtype=np.int32).tobytes())
        logits = np.roll(self._noise, digest % len(self.pieces))
        rest = self._rest("".join(self.pieces[token] for token in context[-LONGEST_MATCH:]))
        if rest.startswith(END):
            logits[self.eos] += LIKING + 4
        else:
            for end in range(1, self._longest + 1):
                token = self._ids.get(rest[:end])
                if token is not None:
                    logits[token] += LIKING + min(end, 8)
        return logits.astype(np.float32).astype(np.float64)

    def _rest(self, text: str) -> str:
        """What follows the longest end of `text` that is known."""
        known, least, most = self._known, 0, min(len(text), LONGEST_MATCH)
        while least < most:
            middle = (least + most + 1) // 2
            if text[-middle:] in known:
                least = middle
            else:
                most = middle - 1
        if not least:
            return ""
        place = known.index(text[-least:]) + least
        return known[place : place + self._longest]


def log_softmax(logits: Row) -> Row:
    """-inf stays -inf."""
    top = logits.max()
    shifted: Row = logits - (top + np.log(np.exp(logits - top).sum()))
    return shifted


@cache
def rote_model() -> RoteModel:
    """The model that knows `TEXTS`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    special = set(tokenizer.all_special_ids)
    pieces = [
        "" if token in special else tokenizer.decode([token]) for token in range(len(tokenizer))
    ]
    return RoteModel(
        pieces,
        bos=tokenizer.bos_token_id,
        eos=tokenizer.eos_token_id,
        fingerprint=tokenizer_fingerprint(tokenizer.get_vocab()),
        texts=TEXTS,
    )
