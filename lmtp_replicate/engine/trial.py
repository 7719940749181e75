"""A model's paths held against its own eager forward, on its real weights.

Three short sequences of random ids, one reaching past the sliding window if the model has one,
are run in mixed chunks and compared, position by position, with what the model computed before
anything about it was changed.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmtp_replicate.engine.pages import PagePool, Place
from lmtp_replicate.engine.plan import Plan, Work
from lmtp_replicate.engine.stream import Stream
from lmtp_replicate.engine.tables import Tables
from lmtp_replicate.errors import ModelLoadError
from lmtp_replicate.protocol.messages import Score

logger = logging.getLogger(__name__)

_LENGTHS = (11, 23, 75)
_CHUNKS = (3, 1, 5, 1, 1, 8, 2)
_LONG_CHUNK = 512
"""What is left of the longest after two rounds of the others: in bfloat16, attention of more than 8
or 16 tokens is another's with AMX."""
_SINGLE = 5
"""Last tokens of a sequence that are run one by one."""
_COMPARED = 29
"""Last positions of a sequence that are compared: of the longest's last chunk not the first three,
since our code does less for tokens whose logits nobody wants."""
_PAGE_TOKENS = 16
_LONGEST_WINDOW = 4608
"""Windows beyond this many tokens are not reached by the proof: eager attention over them would
take too much time and memory at load."""


class Tried(Protocol):
    """A path on trial."""

    @property
    def whole_prompts(self) -> bool:
        """Whether it runs a prompt only whole."""

    def forward(self, plan: Plan) -> Tensor:
        """Logits of the plan's rows, `[rows, width]`."""


AnyPath = TypeVar("AnyPath", bound=Tried)
Made = TypeVar("Made")


class Trial:
    """`pool` and `streams` are what a path is to be made for."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocab_size: int,
        context_length: int,
        kind: type[PagePool],
    ) -> None:
        """Compute the references. Raises ModelLoadError."""
        self.model = model
        self.streams = _streams(model, vocab_size, context_length)
        self.pool = _places(self.streams, kind)
        self._own_attention = text_config(model)._attn_implementation
        self._expected = _references(model, self.streams)
        self._restore()

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(stream.to_run for stream in self.streams)

    def hold(
        self, make: Callable[[], AnyPath], *, is_decoded: bool = False
    ) -> tuple[AnyPath | None, str | None]:
        """The path that `make` makes, and how it differs from the references: None if it agrees.
        No path where it could not be made or run at all. With `is_decoded`, the last tokens are run
        in decode steps. The model's own attention is in place again afterwards."""
        held, failure = self.attempt(lambda: self._held(make(), is_decoded))
        return held or (None, failure)

    def attempt(self, work: Callable[[], Made]) -> tuple[Made | None, str]:
        """What `work` makes; or None, and why it failed. The model's own attention is in place
        again afterwards."""
        try:
            return work(), ""
        except Exception as error:
            logger.debug("A path failed.", exc_info=True)
            return None, f"{type(error).__name__}: {error}"
        finally:
            self._restore()

    def _held(self, path: AnyPath, is_decoded: bool) -> tuple[AnyPath, str | None]:
        return path, self._difference(path, is_decoded)

    def _restore(self) -> None:
        self.model.set_attn_implementation(self._own_attention)

    def _difference(self, path: Tried, is_decoded: bool) -> str | None:
        rows: dict[Stream, list[Tensor]] = {stream: [] for stream in self.streams}
        plans = _plans(self.streams, whole_prompts=path.whole_prompts, is_decoded=is_decoded)
        for plan in plans:
            logits = path.forward(plan).clone()  # a replayed step's are valid until the next one
            parts = torch.split(logits, [len(work.rows) for work in plan.works])
            for work, part in zip(plan.works, parts, strict=True):
                rows[work.stream].append(part)
        pairs = zip(self.streams, self._expected, strict=True)
        errors = torch.cat([_error(torch.cat(rows[stream]), e) for stream, e in pairs])
        config = self.model.config
        is_exact = self.model.dtype == torch.float32 and not hasattr(config, "quantization_config")
        tolerance, share = (1e-3, 1.0) if is_exact else (0.1, 0.9)
        agreeing = (errors <= tolerance).float().mean().item()  # NaN does not agree
        if agreeing >= share:
            return None
        return (
            f"{1 - agreeing:.0%} of the positions differ from the model's own eager forward "
            f"(by up to {errors.max().item():.2g} of the logits' spread)"
        )


def text_config(model: PreTrainedModel) -> Any:
    """The configuration of the language model."""
    return model.config.get_text_config()


def _streams(model: PreTrainedModel, vocab_size: int, context_length: int) -> list[Stream]:
    """SCOREs of random ids, whose wanted rows are the last positions."""
    lengths = list(_LENGTHS)
    window = getattr(text_config(model), "sliding_window", None)
    if window is not None and window <= _LONGEST_WINDOW:
        lengths[-1] = max(lengths[-1], window + _COMPARED // 2)
    lengths = [min(length, context_length) for length in lengths]
    random = torch.Generator().manual_seed(0)
    streams = []
    for index, length in enumerate(lengths):
        ids = torch.randint(vocab_size, (length,), generator=random).tolist()
        known = max(1, length - _COMPARED)
        op = Score(index, tuple(ids[:known]), tuple(ids[known:]))
        streams.append(Stream(op, op.prompt, limit=length))
    return streams


def _places(streams: Sequence[Stream], kind: type[PagePool]) -> PagePool:
    """A pool with a place for each of `streams`: in one of tables, not one page lies behind the
    one before it."""
    longest = max(stream.to_run for stream in streams)
    each = kind.rounded(-(-longest // _PAGE_TOKENS))
    pool = kind(len(streams) * each, _PAGE_TOKENS)
    if kind is Tables:
        every = pool.take(pool.tokens)
        assert every is not None
        for index, stream in enumerate(streams):
            stream.place = Place(every.pages[index :: len(streams)])
    else:
        for stream in streams:
            stream.place = pool.take(stream.to_run)
    return pool


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


def _error(logits: Tensor, expected: Tensor) -> Tensor:
    """Of each row, the root mean square difference as a share of the expected row's spread."""
    logits, expected = logits.float(), expected.float()
    spread = expected.std(dim=-1).clamp_min(1e-6)
    return (logits - expected).square().mean(dim=-1).sqrt() / spread
