"""Repetition, presence and frequency penalties.

Definitions: repetition as in CTRL (Keskar et al. 2019, section 4.1) in the form of Hugging Face
transformers, which divides positive logits and multiplies negative ones; presence and frequency
as in OpenAI's API, but over prompt *and* output, because LMQL's op borders are arbitrary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from lmtp_replicate.engine.transfer import to_device
from lmtp_replicate.protocol.messages import Sampling


def penalised(logits: Tensor, rows: Sequence[tuple[int, Sampling, Sequence[int]]]) -> Tensor:
    """`logits` (float32 [rows, vocab]) with penalties applied to the given rows, as a new tensor.

    Each of `rows` is (row, its sampling, its ids so far). Repetition first, then presence and
    frequency. Only ids that occurred are touched, so the cost follows the history and not the
    vocabulary; ids outside the vocabulary are ignored. Results stay finite.
    """
    width = logits.shape[1]
    where: list[int] = []
    ids: list[int] = []
    factors: list[float] = []
    offsets: list[float] = []
    for row, sampling, history in rows:
        counts = {token: n for token, n in Counter(history).items() if 0 <= token < width}
        where += [row] * len(counts)
        ids += counts
        factors += [sampling.repetition_penalty] * len(counts)
        presence, frequency = sampling.presence_penalty, sampling.frequency_penalty
        offsets += [presence + frequency * n for n in counts.values()]
    at = to_device([*where, *ids], torch.int64, logits.device).view(2, -1).unbind()
    factor, offset = to_device([*factors, *offsets], torch.float64, logits.device).view(2, -1)
    before = logits[at].double()
    after = torch.where(before < 0, before * factor, before / factor) - offset
    limit = torch.finfo(torch.float32).max / 4  # differences of such logits are finite too
    return logits.index_put(at, after.clamp(-limit, limit).float())
