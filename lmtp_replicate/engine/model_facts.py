"""What a loaded model's config and tokenizer say about ids and positions."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

logger = logging.getLogger(__name__)

_POSITION_LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
UNSTATED_CONTEXT = 32768
"""Context length of models that state none (recurrent ones, ALiBi)."""


def eos_token_ids(sources: Iterable[Any], vocab_size: int) -> tuple[int, ...]:
    """The union of the `eos_token_id` (None, an id, or a list of ids) of `sources`, in order of
    first mention. Ids outside the vocabulary can never be produced and are left out."""
    found: dict[int, None] = {}
    for source in sources:
        ids = getattr(source, "eos_token_id", None)
        for token in ids if isinstance(ids, list | tuple) else [ids]:
            if isinstance(token, int) and 0 <= token < vocab_size:
                found[token] = None
    return tuple(found)


def bos_token_id(sources: Iterable[Any], vocab_size: int) -> int | None:
    """The first `bos_token_id` of `sources` that is an id of the vocabulary."""
    for source in sources:
        token = getattr(source, "bos_token_id", None)
        if isinstance(token, int) and 0 <= token < vocab_size:
            return token
    return None


def context_length(config: Any, tokenizer: Any | None) -> int:
    """The number of positions, prompt and output together, that the text config allows.

    OPT's `max_position_embeddings` does not count the offset of 2 of its table, so it needs no
    special case.
    """
    for name in _POSITION_LIMITS:
        limit = getattr(config, name, None)
        if isinstance(limit, int) and limit > 0:
            return limit
    # Tokenizers without a limit say 10^30.
    limit = getattr(tokenizer, "model_max_length", None)
    if isinstance(limit, int) and 0 < limit < 10**9:
        return limit
    logger.warning("The model states no context length; %d is used.", UNSTATED_CONTEXT)
    return UNSTATED_CONTEXT


def stable_rope_length(config: Any) -> int | None:
    """Up to this many positions, rotary embeddings do not depend on the longest sequence in the
    forward pass; None where they never do. Source: transformers' modeling_rope_utils, whose
    "dynamic" and "longrope" change frequencies once the largest position passes this length."""
    parameters = getattr(config, "rope_parameters", None) or {}
    # Some models have one set per kind of layer.
    per_layer = [value for value in parameters.values() if isinstance(value, dict)]
    lengths = []
    for each in per_layer or [parameters]:
        if each.get("rope_type") == "longrope":
            lengths.append(each["original_max_position_embeddings"])
        elif each.get("rope_type") == "dynamic":
            lengths.append(config.max_position_embeddings)
    return min(lengths, default=None)
