"""The packed path: one forward of shape `[1, T]` for all streams of a step."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmtp_replicate.engine.attention import PACKED, PackedStep
from lmtp_replicate.engine.kv_store import KVStore
from lmtp_replicate.engine.layout import lay_out
from lmtp_replicate.engine.pages import PagePool
from lmtp_replicate.engine.scheduler import Plan


class PackedModel:
    """Runs plans on `model`, whose attention it replaces; keys and values lie in `pool`'s pages.
    Raises NotImplementedError when the model's attention cannot be replaced."""

    whole_prompts = False

    def __init__(self, model: PreTrainedModel, pool: PagePool) -> None:
        model.set_attn_implementation(PACKED)
        config = model.config.get_text_config()
        if config._attn_implementation != PACKED:
            raise NotImplementedError("the model's attention cannot be replaced")
        if getattr(config, "attention_chunk_size", None):
            # Only the mask would tell, and the chunks are longer than the proof's sequences.
            raise NotImplementedError("the model's attention is restricted to chunks")
        self._model = model
        self._pool = pool
        self.store = KVStore(pool)
        self._device = torch.device(model.device)

    def forward(self, plan: Plan) -> Tensor:
        """Logits of the plan's rows: `[rows, width]`, in the model's dtype."""
        layout = lay_out(plan, self._pool, self._device)
        self.store.change(plan.changes)
        self.store.extend(layout.end)
        # Not every layer type takes an empty batch: a step without rows computes one in vain.
        kept = layout.rows if len(layout.rows) else layout.rows.new_zeros(1)
        output = self._model(
            input_ids=layout.tokens,
            position_ids=layout.positions,
            use_cache=False,
            logits_to_keep=kept,
            packed_step=PackedStep(layout, self.store),
        )
        logits: Tensor = output.logits[0]
        if not len(layout.rows):
            logits[0, 0].item()  # wait for the device, so that the step's time is measured
        return logits[: len(layout.rows)]
