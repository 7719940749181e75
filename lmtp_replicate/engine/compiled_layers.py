"""Decoder layers of Llama's kind with our own kernels between their linear layers.

transformers runs some forty small operators in such a layer, each of which waits for its turn in
torch's dispatcher with cold caches. Here are the same sums in three calls: the norm, attention with
its rotary embedding, and the gate. Where the linear layers too are ours, the first of the layers
that follow one another runs them all by one call.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from torch import Tensor, nn
from transformers.activations import SiLUActivation

from lmtp_replicate.engine.attention import Scores, Step
from lmtp_replicate.engine.compiled_attention import CompiledStep
from lmtp_replicate.engine.compiled_norms import CompiledNorm
from lmtp_replicate.engine.hooks import is_watched
from lmtp_replicate.engine.kernels import Kernels, kernels
from lmtp_replicate.engine.layer_stack import LayerStack, Learned, StackedLayer
from lmtp_replicate.engine.packed_linear import PackedLinear

logger = logging.getLogger(__name__)

_PARTS = {
    "": {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj", "act_fn"},
}
"""All parts of a layer that is run here. That the layer puts them together as Llama does is for the
proof to find out."""
_HEAD_NORMS = ("q_norm", "k_norm")
"""What attention may have too, as Qwen 3's: norms of each head's queries and keys."""


@dataclass(slots=True)
class Layers:
    """The layers of a model that are run here, and why no others."""

    reason: str
    compiled: list[nn.Module] = field(default_factory=list)

    def restore(self, reason: str) -> None:
        """Have transformers run them again, because of `reason`."""
        for layer in self.compiled:
            del layer.forward
        self.compiled.clear()
        self.reason = reason
        logger.warning("The decoder layers are run as transformers runs them: %s.", reason)

    def restore_unused(self) -> None:
        """Have transformers run those again that have run and could not be taken over."""
        for layer in [layer for layer in self.compiled if not vars(layer)["forward"].is_taken_over]:
            del layer.forward
            self.compiled.remove(layer)
        if not self.compiled:
            self.reason = "they have attention that ours does not compute"


def compile_layers(model: nn.Module) -> Layers:
    """Take over the layers of `model` that have Llama's parts, all of them compiled or packed. A
    hook that is put on such a layer later sees the states that the last of those that follow one
    another has made, of tokens whose logits are wanted; with a `Shortcut` it is not called."""
    candidates = [module for module in model.modules() if _is_candidate(module)]
    if not candidates:
        return Layers("none of Llama's parts, with packed linear layers and compiled norms")
    for layer in candidates:
        layer.forward = CompiledLayer(layer)
    for layers, is_last in _following(model, candidates):
        stacked = [layer.forward.stacked for layer in layers]
        layers[0].forward.stack = LayerStack(stacked, _kernels_of(layers[0]), is_last=is_last)
    return Layers("they agree with transformers' own", candidates)


def _following(model: nn.Module, candidates: list[nn.Module]) -> Iterable[tuple[list[Any], bool]]:
    """Those of `candidates` that follow one another in a list of `model`'s, and whether they are
    the last in the last such list. That nothing else mixes tokens is for the proof to find out."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    lists = [layers for layers in lists if any(layer in candidates for layer in layers)]
    for layers in lists:
        for is_candidate, following in groupby(layers, lambda layer: layer in candidates):
            if is_candidate:
                found = list(following)
                yield found, found[-1] is lists[-1][-1]


class CompiledLayer:
    """Takes the place of `layer.forward`; leaves to that what it does not know, and its first call,
    from which it learns what scores the layer's attention asks for."""

    def __init__(self, layer: nn.Module) -> None:
        self._plain = layer.forward
        self._parts: Any = layer
        norms = [layer.input_layernorm, layer.post_attention_layernorm, *_head_norms(layer)]
        self._norms: list[CompiledNorm] = [norm.forward for norm in norms]
        self._dtype = self._norms[0].dtype
        self._head_dim: int = layer.self_attn.head_dim  # type: ignore[union-attr, assignment]
        self._gate = _kernels_of(layer).gate
        linears = [linear.compiled for linear in _linears(layer)]
        self.stacked = StackedLayer(self._norms, linears, self._head_dim)
        self.stack: LayerStack | None = None
        """That of the layers that begin with this one."""

    @property
    def is_taken_over(self) -> bool:
        """Whether it has learned what it has to."""
        return self.stacked.learned is not None

    def __call__(
        self,
        hidden_states: Tensor,
        *args: Any,
        position_embeddings: Any = None,
        packed_step: Step | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if isinstance(packed_step, CompiledStep) and self.stacked in packed_step.finished:
            return hidden_states
        is_known = self._knows(hidden_states, position_embeddings)
        if args or not isinstance(packed_step, CompiledStep) or not is_known:
            if packed_step is not None:
                kwargs["packed_step"] = packed_step
            plain: Tensor = self._plain(
                hidden_states, *args, position_embeddings=position_embeddings, **kwargs
            )
            return plain
        learned = self.stacked.learned
        if learned is None:
            return self._learn(hidden_states, position_embeddings, packed_step, kwargs)
        if self.stack is not None and self.stack.takes(hidden_states.shape[1], packed_step):
            return self.stack.run(hidden_states, position_embeddings, packed_step)
        return self._run(hidden_states, position_embeddings, packed_step, learned)

    def _knows(self, x: Tensor, embeddings: tuple[Tensor, Tensor] | None) -> bool:
        """Whether these are one row of tokens, and cosines and sines for all of them."""
        return (
            embeddings is not None
            and x.shape[0] == 1
            and x.is_contiguous()
            and all(part.shape == (1, x.shape[1], self._head_dim) for part in embeddings)
            and all(part.dtype == self._dtype for part in (x, *embeddings))
        )

    def _learn(
        self, hidden_states: Tensor, embeddings: Any, step: CompiledStep, rest: dict[str, Any]
    ) -> Tensor:
        pupil = _Pupil(step)
        output: Tensor = self._plain(
            hidden_states, position_embeddings=embeddings, packed_step=pupil, **rest
        )
        if pupil.is_computed:
            assert pupil.asked is not None
            self.stacked.learned = Learned(*pupil.asked, embeddings[0].data_ptr())
        return output

    def _run(self, x: Tensor, embeddings: Any, step: CompiledStep, learned: Learned) -> Tensor:
        attention, mlp = self._parts.self_attn, self._parts.mlp
        normed = self._norms[0](x)
        linears = attention.q_proj, attention.k_proj, attention.v_proj
        projected = [linear.forward(normed) for linear in linears]
        heads = [each.view(*each.shape[:-1], -1, self._head_dim) for each in projected]
        for place, norm in enumerate(self._norms[2:]):
            heads[place] = norm(heads[place])
        query, key, value = (head.transpose(1, 2) for head in heads)
        new = query, key, value
        seen = step.attend_rotated(learned.layer, new, learned.scores, embeddings)
        x, normed = self._norms[1].add(x, attention.o_proj.forward(seen.flatten(-2)))
        gate, up = mlp.gate_proj.forward(normed), mlp.up_proj.forward(normed)
        self._gate(gate.data_ptr(), up.data_ptr(), gate.numel())
        down: Tensor = mlp.down_proj.forward(gate)
        return down.add_(x)


class _Pupil:
    """Hands a layer's attention on to `step` and remembers what was asked."""

    def __init__(self, step: CompiledStep) -> None:
        self._step = step
        self.asked: tuple[int, Scores] | None = None
        self.is_computed = False

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        self.asked = layer, scores
        self.is_computed = self._step.takes(query, value, scores)
        return self._step.attend(layer, query, key, value, scores)


def _is_candidate(layer: nn.Module) -> bool:
    return _has_parts(layer) and _is_free(layer) and _has_ours(layer)


def _has_parts(layer: nn.Module) -> bool:
    """Whether the layer has Llama's parts, and no others but norms of each head."""
    for name, parts in _PARTS.items():
        part = getattr(layer, name, None) if name else layer
        if not isinstance(part, nn.Module):
            return False
        further = _HEAD_NORMS if name == "self_attn" and _head_norms(layer) else ()
        if {child for child, _ in part.named_children()} != parts | {*further}:
            return False
    return True


def _is_free(layer: Any) -> bool:
    """Whether nobody else changes, or wants to know, what the layer computes."""
    parts = layer, layer.self_attn, layer.mlp
    if any(map(is_watched, parts)):
        return False
    # Ministral 3 scales its queries by their positions, beyond those of any trial.
    asked = inspect.signature(type(layer.self_attn).forward).parameters
    return "position_ids" not in asked and "cache_position" not in asked


def _has_ours(layer: Any) -> bool:
    """Whether all linear layers are packed and all norms compiled, in one dtype."""
    attention, mlp, linears = layer.self_attn, layer.mlp, _linears(layer)
    norms = [layer.input_layernorm, layer.post_attention_layernorm, *_head_norms(layer)]
    return (
        all(isinstance(linear, PackedLinear) for linear in linears)
        and all(isinstance(norm.forward, CompiledNorm) for norm in norms)
        and len({part.weight.dtype for part in (*linears, *norms)}) == 1
        and isinstance(mlp.act_fn, nn.SiLU | SiLUActivation)
        and isinstance(getattr(attention, "head_dim", None), int)
        and all(norm.weight.shape == (attention.head_dim,) for norm in _head_norms(layer))
        and mlp.gate_proj.out_features % _kernels_of(layer).width == 0
    )


def _linears(layer: Any) -> list[Any]:
    attention, mlp = layer.self_attn, layer.mlp
    projections = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    return [*projections, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def _head_norms(layer: Any) -> list[Any]:
    """Those of queries and keys, if its attention has both."""
    norms = [getattr(layer.self_attn, name, None) for name in _HEAD_NORMS]
    return [] if None in norms else norms


def _kernels_of(layer: Any) -> Kernels:
    """Those of the layer's norms."""
    compiled, _ = kernels(layer.input_layernorm.forward.dtype)
    assert compiled is not None
    return compiled
