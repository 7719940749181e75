"""What one message may hold, stated once: the decoders enforce it and MODEL_INFO announces it."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Limits:
    """Upper bounds (inclusive) that keep the cost of a hostile message small."""

    message_bytes: int = 16 * 2**20
    """Length of a websocket frame, of `ops_batch_json`, or of an output line."""
    ops_per_batch: int = 1024
    open_streams: int = 4096
    """Streams of one peer that have not ended."""
    open_ids: int = 2**23
    """Ids in the prompts, scored tokens and masks of one peer's open streams, together."""
    prompt_tokens: int = 2**20
    """Length of `prompt` and of `scored`; the model's context length is a separate, lower limit."""
    bias_entries: int = 2**19
    """Entries of `logit_bias`, and of each id list or `add` map of a `mask`."""
    max_token_id: int = 2**20 - 1
    top_logprobs: int = 1024
    nesting: int = 16
    """Lists and objects inside one another."""
    containers: int = 2**18
    """Lists and objects in one message; in JSON every opening bracket counts."""
    mask_names: int = 64
    """Masks remembered by name, per connection or prediction."""
    max_stream_id: int = 2**53
    """The largest integer that every JSON implementation can hold."""

    def announced(self) -> dict[str, int]:
        """The limits as MODEL_INFO's `limits`."""
        return asdict(self)


LIMITS = Limits()
