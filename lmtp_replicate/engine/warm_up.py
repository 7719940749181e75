"""What a device does only once, done before the first op: its libraries' start, the loading of
kernels, and the memory for keys and values."""

from __future__ import annotations

import logging

import torch

from lmtp_replicate.engine.packed import PackedModel
from lmtp_replicate.engine.plan import Plan, Work
from lmtp_replicate.engine.sampling import Draw, Sampler
from lmtp_replicate.engine.stream import Stream
from lmtp_replicate.protocol.messages import Generate, Sampling

logger = logging.getLogger(__name__)


def run_prompt(packed: PackedModel, sampler: Sampler, most: int) -> None:
    """Run a prompt of `most` tokens, or as many as the memory holds, and draw a token from it."""
    pool = packed.pool
    sampling = Sampling(temperature=1.0, top_k=8, top_p=0.9, seed=0)
    op = Generate(0, (0,) * min(most, pool.tokens), max_tokens=1, sampling=sampling)
    stream = Stream(op, op.prompt, limit=pool.tokens)
    stream.place = pool.take(stream.to_run)
    assert stream.place is not None, "the pool is empty"
    with torch.inference_mode():
        logits = packed.forward(Plan(works=[Work(stream, 0, stream.to_run)]))
        drawn = Draw(sampling, None, 2, stream.history, stream.to_run, stream.entropy)
        sampler.step(logits, [drawn])
    pool.release(stream.place)
    logger.info("Warm-up: a prompt of %d tokens has run", stream.to_run)
