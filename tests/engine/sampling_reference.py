"""What sampling means, written slowly: one row, Python loops, float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

from lmtp_replicate.engine.drawing import uniform
from lmtp_replicate.engine.sampling import Draw
from lmtp_replicate.protocol.masks import members

SLACK = 1e-9
"""Sums of exponentials that fall this close to a border may fall on either side of it."""


def processed(logits: Sequence[float], draw: Draw, vocab_size: int) -> dict[int, float]:
    """Processed logits of the ids that are possible."""
    sampling = draw.sampling
    result = dict(enumerate(logits[:vocab_size]))
    for token in set(draw.history) & set(result):
        value, factor = result[token], sampling.repetition_penalty
        value = value * factor if value < 0 else value / factor
        value -= sampling.presence_penalty
        value -= sampling.frequency_penalty * list(draw.history).count(token)
        result[token] = value
    if draw.mask is not None:
        for token, bias in draw.mask.added:
            if token in result:
                result[token] += bias
        for token in members(draw.mask.forbidden):
            result.pop(token, None)
        if draw.mask.allowed is not None:
            allowed = set(members(draw.mask.allowed))
            result = {token: value for token, value in result.items() if token in allowed}
    return result


def logprobs(values: dict[int, float]) -> dict[int, float]:
    """Natural log of softmax, best first, equal values by ascending id."""
    best = max(values.values())
    normaliser = best + math.log(math.fsum(math.exp(v - best) for v in values.values()))
    order = sorted(values, key=lambda token: (-values[token], token))
    return {token: values[token] - normaliser for token in order}


def acceptable_tokens(values: dict[int, float], draw: Draw) -> set[int]:
    """The token, or the two on either side of a border."""
    order = list(logprobs(values))
    if draw.sampling.temperature == 0:
        return {order[0]}
    point = uniform(draw.entropy, draw.position)
    slacks = product((-SLACK, 0, SLACK), repeat=2)
    return {_drawn(values, order, draw, p, point + u) for p, u in slacks}


def _drawn(
    values: dict[int, float], order: list[int], draw: Draw, slack: float, point: float
) -> int:
    sampling = draw.sampling
    best = values[order[0]]
    kept = order[: sampling.top_k] if sampling.top_k else order
    weights = {token: math.exp((values[token] - best) / sampling.temperature) for token in kept}
    if sampling.top_p < 1:
        enough = (sampling.top_p + slack) * math.fsum(weights.values())
        run = 0.0
        for rank, token in enumerate(kept):
            if rank and run >= enough:
                weights.pop(token)
            else:
                run += weights[token]
    target = point * math.fsum(weights.values())
    run = 0.0
    for token in sorted(weights):
        run += weights[token]
        if run > target:
            return token
    return max(token for token, weight in weights.items() if weight > 0)
