"""Prompt in, text out: what the web form and `lmtp-replicate predict -i prompt=...` use."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from lmtp_replicate.errors import StreamError
from lmtp_replicate.protocol.messages import (
    Ending,
    ErrorItem,
    Generate,
    Item,
    Sampling,
    TokenItem,
    is_last,
)
from lmtp_replicate.serving.incremental_text import IncrementalText, Tokenizer
from lmtp_replicate.serving.prediction import Prediction

FIRST = 1


@dataclass(frozen=True)
class TextRequest:
    """`count` completions of `prompt`, each of at most `max_tokens` tokens. The i-th (from 0) of
    a seeded request draws with `sampling.seed + i`."""

    prompt: str
    count: int
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)


class TextMode:
    """Completes text with `tokenizer`; ids in `eos_token_ids` end a completion unprinted."""

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._eos = frozenset(eos_token_ids)

    def complete(self, prediction: Prediction, request: TextRequest) -> Generator[str, None, None]:
        """The first completion as it grows, then each other one, whole, after a line
        `--- 2 ---`. Raises `StreamError` where a completion fails."""
        prompt = self._tokenizer.encode(request.prompt)
        ops = [self._op(request, prompt, number) for number in range(FIRST, request.count + FIRST)]
        texts = {op.stream_id: IncrementalText(self._tokenizer, prompt) for op in ops}
        later = {op.stream_id: "" for op in ops[1:]}
        with closing(prediction.answers(ops)) as steps:
            for items in steps:
                pieces = self._pieces(texts, items)
                if first := pieces.pop(FIRST, ""):
                    yield first
                for number, piece in pieces.items():
                    later[number] += piece
        for number, text in later.items():
            yield f"\n--- {number} ---\n{text}"

    def _op(self, request: TextRequest, prompt: Sequence[int], number: int) -> Generate:
        sampling = request.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + number - FIRST)
        return Generate(number, tuple(prompt), request.max_tokens, sampling, top_logprobs=1)

    def _pieces(
        self, texts: Mapping[int, IncrementalText], items: Sequence[Item]
    ) -> dict[int, str]:
        """The text that `items` complete, by stream."""
        pieces: dict[int, str] = {}
        for item in items:
            match item:
                case ErrorItem(stream_id, error):
                    raise StreamError(f"completion {stream_id}: {error}")
                case TokenItem(stream_id, token) if token not in self._eos:
                    pieces[stream_id] = pieces.get(stream_id, "") + texts[stream_id].add(token)
            if isinstance(item, TokenItem | Ending) and is_last(item):
                stream_id = item.stream_id
                pieces[stream_id] = pieces.get(stream_id, "") + texts[stream_id].finish()
        return pieces
