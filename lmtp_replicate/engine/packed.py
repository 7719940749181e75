"""The packed path: one forward of shape `[1, T]` for all streams of a step."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmtp_replicate.engine.attention import PACKED, PackedStep, Step
from lmtp_replicate.engine.compiled_attention import CompiledAttention, CompiledStep
from lmtp_replicate.engine.groups import place_of
from lmtp_replicate.engine.kv_store import KVStore
from lmtp_replicate.engine.layout import Layout, lay_out
from lmtp_replicate.engine.pages import PagePool
from lmtp_replicate.engine.plan import Plan, Work
from lmtp_replicate.engine.shortcut import Shortcut


class PackedModel:
    """Runs plans on `model`, whose attention it replaces, by `attention` and `shortcut` where these
    can; keys and values lie in `pool`'s pages, for `attention` in those of `Spans`. Raises
    NotImplementedError when the model's attention cannot be replaced."""

    whole_prompts = False

    def __init__(
        self,
        model: PreTrainedModel,
        pool: PagePool,
        attention: CompiledAttention | None = None,
        shortcut: Shortcut | None = None,
    ) -> None:
        model.set_attn_implementation(PACKED)
        config = model.config.get_text_config()
        if config._attn_implementation != PACKED:
            raise NotImplementedError("the model's attention cannot be replaced")
        if getattr(config, "attention_chunk_size", None):
            # Only the mask would tell, and the chunks are longer than the proof's sequences.
            raise NotImplementedError("the model's attention is restricted to chunks")
        self._model = model
        self._attention = attention
        self._shortcut = shortcut
        self.is_compiled = False
        """Whether `attention` has computed anything yet."""
        self.pool = pool
        self.store = KVStore(pool)
        self.device = torch.device(model.device)

    def forward(self, plan: Plan) -> Tensor:
        """Logits of the plan's rows: `[rows, width]`, in the model's dtype."""
        # First, since it takes no memory on a device (but for copies that overlap, of which pages
        # have none): if that does not suffice for the rest, what the scheduler believes of the
        # other streams' keys and values is true nevertheless.
        self.store.change(plan.changes)
        layout = lay_out(plan, self.pool, self.device)
        self.store.extend(layout.end)
        step = self._step(layout)
        if self._shortcut is not None and self._shortcut.takes(step, layout):
            return self._shortcut.run(layout, step)
        # Not every layer type takes an empty batch: a step without rows computes one in vain.
        kept = layout.rows if len(layout.rows) else layout.rows.new_zeros(1)
        logits = self.run(layout.tokens, layout.positions, kept, step)
        self.is_compiled |= isinstance(step, CompiledStep) and step.is_used
        if not len(layout.rows):
            logits[0, 0].item()  # wait for the device, so that the step's time is measured
        return logits[: len(layout.rows)]

    def _step(self, layout: Layout) -> Step:
        if self._attention is None:
            return PackedStep(layout, self.store)
        return CompiledStep(self._attention, layout, self.store)

    def address(self, work: Work) -> int:
        """Where the keys and values of the work's first token go."""
        return self.pool.address(place_of(work), work.start)

    def run(self, tokens: Tensor, positions: Tensor, rows: Tensor | int, step: Step) -> Tensor:
        """One forward over `tokens` at `positions`, both `[1, T]`: the logits of `rows`, or of all
        tokens where it is 0."""
        output = self._model(
            input_ids=tokens,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=rows,
            packed_step=step,
        )
        logits: Tensor = output.logits[0]
        return logits
