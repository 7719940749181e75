"""The fallback path: one forward per stream, with the cache object the model itself makes.

Slower than the packed path and equally correct, for every architecture that transformers can
generate with. Prompts are never cut: not every model's cache can be continued by several tokens.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmtp_replicate.engine.plan import Plan, Work
from lmtp_replicate.engine.stream import Stream


class OneByOneModel:
    """Runs plans on `model`. Without `is_cached` every step runs a stream's tokens all over again,
    for models that have no cache or whose cache does not agree with them."""

    whole_prompts = True

    def __init__(self, model: PreTrainedModel, *, is_cached: bool = True) -> None:
        self._model = model
        self._is_cached = is_cached
        parameters = inspect.signature(model.forward).parameters
        self._cache_name = "cache_params" if "cache_params" in parameters else "past_key_values"
        self._caches: dict[Stream, Any] = {}
        self._device = torch.device(model.device)

    def forward(self, plan: Plan) -> Tensor:
        """Logits of the plan's rows: `[rows, width]`."""
        for stream in [s for s in self._caches if s.place is None]:  # ended or paused
            del self._caches[stream]
        return torch.cat([self._run(work) for work in plan.works])

    def _run(self, work: Work) -> Tensor:
        start = work.start if self._is_cached else 0
        tokens = torch.tensor([work.stream.tokens[start : work.stop]], device=self._device)
        if self._is_cached:
            cache = self._caches.get(work.stream) if start else None
            output = self._model(input_ids=tokens, use_cache=True, **{self._cache_name: cache})
            self._caches[work.stream] = getattr(output, self._cache_name)
        else:
            output = self._model(input_ids=tokens, use_cache=False)
        logits: Tensor = output.logits[0]
        return logits[[position - start for position in work.rows]]
