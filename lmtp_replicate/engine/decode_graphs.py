"""Decode steps that are recorded once and replayed: no Python and no launches layer by layer.

A recording has fixed shapes and addresses. So there is one for each number of streams of a row of
powers of two, and each width of their tables, which reads a static buffer of numbers and leaves its
logits in one static tensor. Rows beyond the step's streams write to a page of the store that is
nobody's, and their logits are not looked at. Prompts beside decoding streams run as without.

Which attention is the fastest depends on the device, the model and the shape: each recording is
made with all of them, and the fastest stays.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lmtp_replicate.engine.decode_attention import DecodeAttention, DecodeStep
from lmtp_replicate.engine.groups import padded_table
from lmtp_replicate.engine.packed import PackedModel
from lmtp_replicate.engine.plan import Plan, Work
from lmtp_replicate.engine.transfer import host_tensor

logger = logging.getLogger(__name__)

_SPANS = (256, 1024)
"""Tokens that the tables of a recording lead to: the first of these that is enough, or the last
times a power of two, but no more than the context has. So there are few recordings, and none that
looks at far too many. These are recorded at start, others at their first use."""
_TIMED = 3
"""How often a recording is replayed to find out how long it takes."""


class Capture(Protocol):
    """Records work on a device."""

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run `work` and record it; returns what does the same again. Raises anything when it
        cannot be recorded."""


class _Recording(NamedTuple):
    replay: Callable[[], None]
    ints: Tensor
    """Static, int64 `[stream, 2 + page]`: tokens, positions and tables."""


class DecodeGraphs:
    """Runs plans like `packed`, decode steps of up to `max_streams` streams by recordings with one
    of `attentions`."""

    whole_prompts = False

    def __init__(
        self,
        packed: PackedModel,
        attentions: Sequence[DecodeAttention],
        capture: Capture,
        max_streams: int,
        context_length: int,
    ) -> None:
        self._context_length = context_length
        self._packed = packed
        self._attentions = attentions
        self._capture = capture
        self._sizes = [1 << n for n in range((max_streams - 1).bit_length() + 1)]
        self._logits: Tensor | None = None
        self._recordings: dict[tuple[int, int], _Recording | None] = {}
        self._worked: set[tuple[int, str]] = set()
        """For which numbers of streams, and with which attention, there has been a recording."""
        self.replayed = 0
        """Steps that were replayed so far."""

    def warm_up(self) -> None:
        """Record what is common. Raises RuntimeError when nothing of it can be recorded."""
        # The largest first: the others fit into its memory.
        pairs = product(reversed(self._sizes), reversed(_SPANS))
        wanted = dict.fromkeys(self._key(size, span) for size, span in pairs)
        failure = ""
        for number, (size, span) in enumerate(wanted, 1):
            with torch.inference_mode():
                failure = self._try(size, span, self._attentions) or failure
            logger.info("Warm-up: decode step %d of %d, %d streams", number, len(wanted), size)
        if not any(self._recordings.values()):
            raise RuntimeError(failure)

    def record(self, streams: int, longest: int, attentions: Sequence[DecodeAttention]) -> None:
        """Record the step of `streams` streams, the longest of `longest` tokens, with the fastest
        of `attentions`, if it is to be. Raises RuntimeError if none can be recorded."""
        size, span = self._key(streams, longest)
        attentions = [attention for attention in attentions if size * span <= attention.most]
        if attentions and (size, span) not in self._recordings:
            self._recordings[size, span] = self._fastest(attentions, size, span)

    def forward(self, plan: Plan) -> Tensor:
        """Logits of the plan's rows: `[rows, width]`; those of a replayed step are valid until the
        next one."""
        decoding, others = plan.works[: plan.decoding], plan.works[plan.decoding :]
        recording = self._recording(decoding)
        if recording is None:
            return self._packed.forward(plan)
        self._packed.store.change(plan.changes)
        self._packed.store.extend(max(map(self._packed.address, decoding)) + 1)
        self._fill(recording.ints, decoding)
        # First: the device is at it while the host gets on with the others.
        recording.replay()
        self.replayed += 1
        assert self._logits is not None
        logits = self._logits[: len(decoding)]
        if not others:
            return logits
        # They read every weight once more. But their step is bound by its launches, of which the
        # attention of all streams that decode, some batches of them in each layer, is spared.
        return torch.cat([logits, self._packed.forward(Plan(works=others))])

    def _recording(self, works: list[Work]) -> _Recording | None:
        if not 0 < len(works) <= self._sizes[-1]:
            return None
        key = self._key(len(works), max(work.stop for work in works))
        if key not in self._recordings:
            self._record_late(*key)
        return self._recordings.get(key)

    def _record_late(self, size: int, span: int) -> None:
        """While streams wait: not for a compiler, which takes seconds."""
        ready = [a for a in self._attentions if not a.is_compiled or (size, a.name) in self._worked]
        self._try(size, span, ready)

    def _try(self, size: int, span: int, attentions: Sequence[DecodeAttention]) -> str:
        """`record`, and where that fails have such steps run from now on; returns why."""
        try:
            self.record(size, span, attentions)
        except Exception as error:
            logger.warning("Steps of %d streams cannot be recorded: %s", size, error)
            self._recordings[size, span] = None
            return str(error)
        return ""

    def _key(self, streams: int, longest: int) -> tuple[int, int]:
        """Which recording the step is, of how many streams and tokens of each."""
        span = next((span for span in _SPANS if span >= longest), _SPANS[-1])
        while span < longest:
            span *= 2
        page_tokens = self._packed.pool.page_tokens
        context = -(-self._context_length // page_tokens) * page_tokens
        return 1 << (streams - 1).bit_length(), min(span, context)

    def _fastest(self, attentions: Sequence[DecodeAttention], size: int, span: int) -> _Recording:
        pages = -(-span // self._packed.pool.page_tokens)
        ints = torch.zeros(size, 2 + pages, dtype=torch.int64, device=self._packed.device)
        self._fill(ints, [])
        # As far as they may ever be: what an attention takes may depend on it.
        ints[:, 1] = min(span, self._context_length) - 1
        recorded: list[tuple[float, str, _Recording]] = []
        failure = ""
        for attention in attentions:
            try:
                replay = self._capture(partial(self._run, ints, attention))
                seconds = self._seconds(replay) if len(attentions) > 1 else 0.0
                recorded.append((seconds, attention.name, _Recording(replay, ints)))
                self._worked.add((size, attention.name))
            except Exception as error:
                logger.info("No recording with %s attention: %s", attention.name, error)
                # The error itself would hold on to the graph that came to nothing.
                failure = str(error) or type(error).__name__
        if not recorded:
            raise RuntimeError(failure)
        _, name, best = min(recorded, key=lambda each: each[0])
        logger.info("Steps of %d streams and %d tokens of each: %s attention", size, span, name)
        return best

    def _seconds(self, replay: Callable[[], None]) -> float:
        """How long it takes, at the least."""
        assert self._logits is not None
        taken = []
        for _ in range(_TIMED):
            began = time.perf_counter()
            replay()
            self._logits[0, 0].item()  # wait for the device
            taken.append(time.perf_counter() - began)
        return min(taken)

    def _run(self, ints: Tensor, attention: DecodeAttention) -> None:
        """What is recorded."""
        tokens, positions, tables = ints[:, 0], ints[:, 1], ints[:, 2:]
        step = DecodeStep(tokens, positions, tables, self._packed.store, attention)
        logits = self._packed.run(tokens[None], positions[None], 0, step)
        if self._logits is None:
            self._logits = logits.new_empty(self._sizes[-1], logits.shape[1])
        self._logits[: len(logits)].copy_(logits)

    def _fill(self, ints: Tensor, works: list[Work]) -> None:
        """The static numbers: those of `works`, then of rows that are nobody's."""
        size, pages = ints.shape[0], ints.shape[1] - 2
        page_tokens = self._packed.pool.page_tokens
        rows = [
            [w.stream.tokens[w.start], w.start, *padded_table(w, page_tokens, pages)] for w in works
        ]
        rows += [[0, 0, *[self._packed.store.scratch] * pages]] * (size - len(works))
        ints.copy_(host_tensor(rows, torch.int64, ints.device), non_blocking=True)
