"""A shortcut held against transformers' forward: bit for bit, since both have the same parts."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from lmtp_replicate.engine.compiled_attention import CompiledAttention
from lmtp_replicate.engine.packed import PackedModel
from lmtp_replicate.engine.plan import Plan, Work
from lmtp_replicate.engine.shortcut import Shortcut, shortcut_for
from lmtp_replicate.engine.spans import Spans
from lmtp_replicate.engine.stream import Stream
from lmtp_replicate.protocol.messages import Score

_CHUNK = 3
"""Tokens of a sequence: no kernel takes less."""
_SEQUENCES = 4
"""Their chunks' positions lie evenly between the context's first and its last ones."""
_FARTHEST = 8192
"""Positions beyond are not tried: attention over so many tokens would take too long at load."""
_PAGE_TOKENS = 16


def tried_shortcut(
    model: PreTrainedModel, attention: CompiledAttention, vocab_size: int, context_length: int
) -> tuple[Shortcut | None, str]:
    """The shortcut for `model`, which runs packed with `attention` and has compiled layers, if its
    logits are transformers' own; else None. And why."""
    shortcut, why = shortcut_for(model, context_length)
    if shortcut is None:
        return None, why
    longest = min(context_length, _FARTHEST)
    pool = Spans(_SEQUENCES * Spans.rounded(-(-longest // _PAGE_TOKENS)), _PAGE_TOKENS)
    works = _works(pool, vocab_size, longest)
    whole, quick = (PackedModel(model, pool, attention, taken) for taken in (None, shortcut))
    for plan in (*(Plan(works=[work]) for work in works), Plan(works=works)):
        if not torch.equal(whole.forward(plan), quick.forward(plan)):
            return None, "it does more than its parts do"
    if not shortcut.is_used:
        return None, "its kernels take too few tokens"
    return shortcut, "it agrees with transformers' forward, bit for bit"


def _works(pool: Spans, vocab_size: int, longest: int) -> list[Work]:
    """Chunks of random ids, at positions before `longest`, of which all logits are wanted. What
    comes before them nobody has written: it is zeros for both."""
    random = torch.Generator().manual_seed(0)
    count = min(_CHUNK, longest)
    works = []
    for index in range(_SEQUENCES):
        start = (longest - count) * index // (_SEQUENCES - 1)
        ids = torch.randint(vocab_size, (start + count + 1,), generator=random).tolist()
        op = Score(index, tuple(ids[: start + 1]), tuple(ids[start + 1 :]))
        stream = Stream(op, op.prompt, limit=len(ids))
        stream.place = pool.take(start + count)
        works.append(Work(stream, start, count))
    return works
