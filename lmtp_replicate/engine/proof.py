"""Which path a model runs on, decided by what it computes and not by its name.

Three short sequences of random ids, one reaching past the sliding window if the model has one,
are run packed in mixed chunks and compared, position by position, with the model's own eager
forward on its real weights. If that fails or differs, each stream is run alone with the model's
own cache, which is put to the same test; and if that differs too, without a cache.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmtp_replicate.engine.decode_attention import DecodeAttention, GatheredAttention
from lmtp_replicate.engine.decode_graphs import Capture, DecodeGraphs
from lmtp_replicate.engine.one_by_one import OneByOneModel
from lmtp_replicate.engine.options import PackLinears
from lmtp_replicate.engine.packed import PackedModel
from lmtp_replicate.engine.packed_linears import pack_linears
from lmtp_replicate.engine.pages import PagePool
from lmtp_replicate.engine.scheduler import Plan, Work
from lmtp_replicate.engine.stream import Stream
from lmtp_replicate.errors import ModelLoadError
from lmtp_replicate.protocol.messages import Score

logger = logging.getLogger(__name__)

_LENGTHS = (11, 23, 37)
_CHUNKS = (3, 1, 5, 1, 1, 8, 2)
_LONG_CHUNK = 512
_SINGLE = 5
"""Last tokens of a sequence that are run one by one."""
_COMPARED = 32
"""Last positions of a sequence that are compared."""
_LONGEST_WINDOW = 4608
"""Windows beyond this many tokens are not reached by the proof: eager attention over them would
take too much time and memory at load."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the model is run. `is_cached` matters for the fallback only. `bytes_per_token`: keys
    and values of one token, measured on the packed path, else estimated from the config.
    `linears`: how its linear layers are run, and why. `attention`: with which decode steps may be
    recorded, if they may, and `attention_reason` why."""

    path: str
    reason: str
    is_cached: bool
    bytes_per_token: int
    linears: tuple[str, str] = ("plain", "")
    attention: DecodeAttention | None = None
    attention_reason: str = ""


def prove(
    model: PreTrainedModel,
    vocab_size: int,
    context_length: int,
    pack: PackLinears = "all",
    capture: Capture | None = None,
) -> Verdict:
    """Pack the model's linear layers and decide the path, and whether `capture`, if there is one,
    may record its decode steps. What all of it is held against is computed before, by the model as
    it came. Its own attention is in place again afterwards. Raises ModelLoadError when the model
    cannot be run at all."""
    own_attention = _text_config(model)._attn_implementation
    with torch.inference_mode():
        pool, streams = _streams(model, vocab_size, context_length)
        expected = _references(model, streams)
        model.set_attn_implementation(own_attention)
        linears = pack_linears(model, pack)
        verdict = _decide(model, pool, streams, expected)
        if linears.state != "plain" and not verdict.is_cached:
            # Neither path agrees: perhaps the model reads its layers' weights itself.
            linears.unpack(f"with packed ones, {verdict.reason}")
            verdict = _decide(model, pool, streams, expected)
        if capture is not None:
            attention, why = _decide_recording(model, pool, streams, expected, verdict, capture)
            verdict = replace(verdict, attention=attention, attention_reason=why)
    logger.info("%s runs %s: %s", type(model).__name__, verdict.path, verdict.reason)
    return replace(verdict, linears=(linears.state, linears.reason))


def _decide(
    model: PreTrainedModel, pool: PagePool, streams: Sequence[Stream], expected: Sequence[Tensor]
) -> Verdict:
    own_attention = _text_config(model)._attn_implementation
    try:
        packed = PackedModel(model, pool)
        difference = _difference(model, packed, streams, expected)
        size = packed.store.bytes_per_token
    except Exception as error:
        logger.debug("The packed path failed.", exc_info=True)
        difference = f"{type(error).__name__}: {error}"
    model.set_attn_implementation(own_attention)
    if difference is None:
        reason = "it agrees with the model's own eager forward"
        return Verdict("packed", reason, is_cached=True, bytes_per_token=size)
    return _fall_back(model, streams, expected, difference)


def _decide_recording(
    model: PreTrainedModel,
    pool: PagePool,
    streams: Sequence[Stream],
    expected: Sequence[Tensor],
    verdict: Verdict,
    capture: Capture,
) -> tuple[DecodeAttention | None, str]:
    """The attention with which recorded decode steps agree, and why or why not."""
    if verdict.path != "packed":
        return None, "the model is not run packed"
    own_attention = _text_config(model)._attn_implementation
    attention = GatheredAttention()
    try:
        graphs = DecodeGraphs(PackedModel(model, pool), attention, capture, len(streams))
        graphs.record(len(streams), max(stream.to_run for stream in streams))
        difference = _difference(model, graphs, streams, expected, is_decoded=True)
        if difference is None and not graphs.replayed:
            difference = "no step was replayed"
    except Exception as error:
        logger.debug("Decode steps cannot be recorded.", exc_info=True)
        difference = f"{type(error).__name__}: {error}"
    model.set_attn_implementation(own_attention)
    if difference is None:
        return attention, f"with {attention.name} attention, they agree with the eager forward"
    return None, difference


def _fall_back(
    model: PreTrainedModel, streams: Sequence[Stream], expected: Sequence[Tensor], why: str
) -> Verdict:
    config = _text_config(model)
    size = 2 * config.num_hidden_layers * config.hidden_size * model.dtype.itemsize
    try:
        difference = _difference(model, OneByOneModel(model), streams, expected)
    except Exception as error:
        logger.debug("The model's own cache failed.", exc_info=True)
        difference = f"{type(error).__name__}: {error}"
    reason = f"packed: {why}"
    if difference is not None:
        reason += f"; with the model's own cache: {difference}; so without a cache"
    return Verdict("fallback", reason, is_cached=difference is None, bytes_per_token=size)


def _text_config(model: PreTrainedModel) -> Any:
    return model.config.get_text_config()


def _streams(
    model: PreTrainedModel, vocab_size: int, context_length: int
) -> tuple[PagePool, list[Stream]]:
    """SCOREs of random ids, whose wanted rows are the last positions, in a pool that holds them."""
    lengths = list(_LENGTHS)
    window = getattr(_text_config(model), "sliding_window", None)
    if window is not None and window <= _LONGEST_WINDOW:
        lengths[-1] = max(lengths[-1], window + _COMPARED // 2)
    lengths = [min(length, context_length) for length in lengths]
    random = torch.Generator().manual_seed(0)
    pool = PagePool(3 * max(lengths), page_tokens=16)
    streams = []
    for index, length in enumerate(lengths):
        ids = torch.randint(vocab_size, (length,), generator=random).tolist()
        known = max(1, length - _COMPARED)
        op = Score(index, tuple(ids[:known]), tuple(ids[known:]))
        stream = Stream(op, op.prompt, limit=length)
        stream.place = pool.take(length)
        streams.append(stream)
    return pool, streams


def _references(model: PreTrainedModel, streams: Sequence[Stream]) -> list[Tensor]:
    """Each stream's rows by the model's own eager forward. Raises ModelLoadError."""
    try:
        model.set_attn_implementation("eager")
        return [_reference(model, stream) for stream in streams]
    except Exception as error:
        raise ModelLoadError(
            f"{type(model).__name__} cannot run a plain forward pass ({type(error).__name__}: "
            f"{error}); check that the checkpoint is a whole causal language model and fits into "
            "memory"
        ) from error


def _reference(model: PreTrainedModel, stream: Stream) -> Tensor:
    """Logits of the stream's rows by one plain forward over all its tokens."""
    rows = torch.tensor(stream.rows(0, stream.to_run), device=model.device)
    ids = torch.tensor([stream.tokens[: stream.to_run]], device=model.device)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        logits: Tensor = model(input_ids=ids, use_cache=False, logits_to_keep=rows).logits
        return logits[0]
    logits = model(input_ids=ids, use_cache=False).logits
    return logits[0, rows]


def _plans(streams: Sequence[Stream], *, whole_prompts: bool, is_decoded: bool) -> Iterator[Plan]:
    """Steps that run all of `streams`, in chunks of changing sizes or, with `whole_prompts`, most
    of each at once; the last tokens go one by one in both cases, with `is_decoded` those of all
    streams together, as decode steps."""
    for stream in streams:
        stream.cached = 0
    for sizes in zip(*(_sizes(n, whole_prompts) for n in range(len(streams))), strict=True):
        works = [
            Work(stream, stream.cached, min(size, max(1, stream.missing - _SINGLE)))
            for stream, size in zip(streams, sizes, strict=True)
            if stream.missing
        ]
        if not works:
            return
        if is_decoded:
            works = [work for work in works if work.stream.missing > _SINGLE] or works
        is_decode = is_decoded and all(work.stream.missing <= _SINGLE for work in works)
        yield Plan(works=works, decoding=len(works) if is_decode else 0)
        for work in works:
            work.stream.cached = work.stop


def _sizes(index: int, whole_prompts: bool) -> Iterator[int]:
    """Chunk sizes of a stream: never the same for two streams in the same step for long. After
    two rounds of small ones, long sequences are run in large chunks."""
    if whole_prompts:
        return repeat(sys.maxsize)
    small = (_CHUNKS[index:] + _CHUNKS[:index]) * 2
    return chain(small, repeat(_LONG_CHUNK))


def _difference(
    model: PreTrainedModel,
    path: PackedModel | OneByOneModel | DecodeGraphs,
    streams: Sequence[Stream],
    expected: Sequence[Tensor],
    *,
    is_decoded: bool = False,
) -> str | None:
    """How `path` differs from `expected` (one tensor of rows per stream); None if it agrees. With
    `is_decoded`, the last tokens are run in decode steps."""
    rows: dict[Stream, list[Tensor]] = {stream: [] for stream in streams}
    plans = _plans(streams, whole_prompts=path.whole_prompts, is_decoded=is_decoded)
    for plan in plans:
        logits = path.forward(plan).clone()  # a replayed step's are valid until the next one
        parts = torch.split(logits, [len(work.rows) for work in plan.works])
        for work, part in zip(plan.works, parts, strict=True):
            rows[work.stream].append(part)
    errors = torch.cat(
        [_error(torch.cat(rows[s]), e) for s, e in zip(streams, expected, strict=True)]
    )
    is_exact = model.dtype == torch.float32 and not hasattr(model.config, "quantization_config")
    tolerance, share = (1e-3, 1.0) if is_exact else (0.1, 0.9)
    agreeing = (errors <= tolerance).float().mean().item()  # NaN does not agree
    if agreeing >= share:
        return None
    return (
        f"{1 - agreeing:.0%} of the positions differ from the model's own eager forward "
        f"(by up to {errors.max().item():.2g} of the logits' spread)"
    )


def _error(logits: Tensor, expected: Tensor) -> Tensor:
    """Of each row, the root mean square difference as a share of the expected row's spread."""
    logits, expected = logits.float(), expected.float()
    spread = expected.std(dim=-1).clamp_min(1e-6)
    return (logits - expected).square().mean(dim=-1).sqrt() / spread
