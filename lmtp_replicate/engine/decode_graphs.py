"""Decode steps that are recorded once and replayed: no Python and no launches layer by layer.

A recording has fixed shapes and addresses. So there is one for each number of streams of a row of
powers of two (and span of attention), which reads one static buffer of numbers and leaves its
logits in one static tensor. Rows beyond the step's streams write to a place of the store that is
nobody's, and their logits are not looked at. Everything but decode steps runs as without.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from lmtp_replicate.engine.decode_attention import DecodeAttention, DecodeStep
from lmtp_replicate.engine.packed import PackedModel
from lmtp_replicate.engine.plan import Plan, Work
from lmtp_replicate.engine.transfer import host_tensor

logger = logging.getLogger(__name__)

_WARM_LENGTHS = (256, 1024)
"""Lengths of streams whose steps are recorded at start; others are at their first use."""


class Capture(Protocol):
    """Records work on a device."""

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run `work` and record it; returns what does the same again. Raises anything when it
        cannot be recorded."""


class DecodeGraphs:
    """Runs plans like `packed`, decode steps of up to `max_streams` streams by recordings."""

    whole_prompts = False

    def __init__(
        self, packed: PackedModel, attention: DecodeAttention, capture: Capture, max_streams: int
    ) -> None:
        self._packed = packed
        self._attention = attention
        self._capture = capture
        self._sizes = [1 << n for n in range((max_streams - 1).bit_length() + 1)]
        # Static: recordings know its address. Those of n streams use its first 3 * n numbers.
        self._ints = torch.zeros(3 * self._sizes[-1], dtype=torch.int64, device=packed.device)
        self._logits: Tensor | None = None
        self._recordings: dict[tuple[int, int], Callable[[], None] | None] = {}
        self.replayed = 0
        """Steps that were replayed so far."""

    def warm_up(self) -> None:
        """Record what is common. Raises whatever the first recording that fails does."""
        # The largest first: the others fit into its memory.
        wanted = [(n, at) for n in reversed(self._sizes) for at in reversed(_WARM_LENGTHS)]
        for number, (streams, length) in enumerate(wanted, 1):
            with torch.inference_mode():
                self.record(streams, length)
            logger.info("Warm-up: decode step %d of %d, %d streams", number, len(wanted), streams)

    def record(self, streams: int, longest: int) -> None:
        """Record the step of `streams` streams, the longest of `longest` tokens, if it is to be."""
        key = self._key(streams, longest)
        if key is not None and key not in self._recordings:
            self._fill([], key[0])
            self._recordings[key] = self._capture(lambda: self._run(*key))

    def forward(self, plan: Plan) -> Tensor:
        """Logits of the plan's rows: `[rows, width]`; those of a replayed step are valid until the
        next one."""
        replay = self._recording(plan)
        if replay is None:
            return self._packed.forward(plan)
        self._packed.prepare(plan.changes, max(map(self._packed.place, plan.works)) + 1)
        self._fill(plan.works, _size(len(plan.works)))
        replay()
        self.replayed += 1
        assert self._logits is not None
        return self._logits[: len(plan.works)]

    def _recording(self, plan: Plan) -> Callable[[], None] | None:
        if plan.decoding < len(plan.works) or not 0 < len(plan.works) <= self._sizes[-1]:
            return None
        longest = max(work.stop for work in plan.works)
        key = self._key(len(plan.works), longest)
        if key is None:
            return None
        try:
            self.record(*key)
        except Exception:
            logger.warning("Steps of %d streams cannot be recorded.", key[0], exc_info=True)
            self._recordings[key] = None
        return self._recordings[key]

    def _key(self, streams: int, longest: int) -> tuple[int, int] | None:
        """Which recording the step is, of how many streams and tokens of each."""
        size = _size(streams)
        span = self._attention.span(size, longest)
        return None if span is None else (size, span)

    def _run(self, size: int, span: int) -> None:
        """What is recorded."""
        ints = self._ints[: 3 * size].view(3, size)
        step = DecodeStep(ints, span, self._packed.store, self._attention)
        logits = self._packed.run(step.tokens[None], step.positions[None], 0, step)
        if self._logits is None:
            self._logits = logits.new_empty(self._sizes[-1], logits.shape[1])
        self._logits[:size].copy_(logits)

    def _fill(self, works: list[Work], size: int) -> None:
        """The static numbers: those of `works`, then of rows that are nobody's."""
        rest = size - len(works)
        tokens = [work.stream.tokens[work.start] for work in works] + [0] * rest
        positions = [work.start for work in works] + [0] * rest
        firsts = [self._packed.place(work) - work.start for work in works]
        firsts += [self._packed.store.scratch] * rest
        numbers = host_tensor(tokens + positions + firsts, torch.int64, self._ints.device)
        self._ints[: 3 * size].copy_(numbers, non_blocking=True)


def _size(streams: int) -> int:
    return 1 << (streams - 1).bit_length()
