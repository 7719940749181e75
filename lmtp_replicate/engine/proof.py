"""Which path a model runs on, decided by what it computes and not by its name.

Everything that is to speed the model up is put on trial. If the packed path fails or differs, each
stream is run alone with the model's own cache, which is put to the same test; and if that differs
too, without a cache.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from lmtp_replicate.engine.compiled_attention import CompiledAttention, compiled_attention_for
from lmtp_replicate.engine.compiled_layers import Layers, compile_layers
from lmtp_replicate.engine.compiled_norms import Norms, compile_norms
from lmtp_replicate.engine.decode_attention import DecodeAttention, GatheredAttention
from lmtp_replicate.engine.decode_graphs import Capture, DecodeGraphs
from lmtp_replicate.engine.flex_decode import FlexDecodeAttention
from lmtp_replicate.engine.fused_norms import fuse_norms
from lmtp_replicate.engine.one_by_one import OneByOneModel
from lmtp_replicate.engine.options import PackLinears
from lmtp_replicate.engine.packed import PackedModel
from lmtp_replicate.engine.packed_linears import pack_linears
from lmtp_replicate.engine.pages import PagePool
from lmtp_replicate.engine.shortcut import Shortcut
from lmtp_replicate.engine.shortcut_trial import tried_shortcut
from lmtp_replicate.engine.spans import Spans
from lmtp_replicate.engine.trial import Trial, text_config

logger = logging.getLogger(__name__)


def decode_attentions(device: torch.device) -> list[DecodeAttention]:
    """Those that a model on `device` may have its decode steps recorded with."""
    gathered: list[DecodeAttention] = [GatheredAttention()]
    # Only there is it compiled to a kernel that visits no pages but a stream's own.
    return [*gathered, FlexDecodeAttention()] if device.type == "cuda" else gathered


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the model is run. `is_cached` matters for the fallback only. `bytes_per_token`: keys
    and values of one token, measured on the packed path, else estimated from the config.
    `linears`, `norms`, `layers`: how these are run, and why. `attention`: our own code for it, if
    that agrees, and `attention_reason` why or why not; `shortcut` and `forward_reason` likewise for
    the whole. `decode`: with which attentions decode steps
    may be recorded, if they may, and `decode_reason` why."""

    path: str
    reason: str
    is_cached: bool
    bytes_per_token: int
    linears: tuple[str, str] = ("plain", "")
    norms: tuple[str, str] = ("torch", "")
    layers: tuple[str, str] = ("torch", "")
    attention: CompiledAttention | None = None
    attention_reason: str = ""
    shortcut: Shortcut | None = None
    forward_reason: str = "its layers are not compiled"
    decode: tuple[DecodeAttention, ...] = ()
    decode_reason: str = ""


def prove(
    model: PreTrainedModel,
    vocab_size: int,
    context_length: int,
    pack: PackLinears = "all",
    compile_kernels: bool = True,
    kind: type[PagePool] = Spans,
    capture: Capture | None = None,
) -> Verdict:
    """Pack the model's linear layers, have its norms compiled, and decide the path, whether it
    takes our attention (for a pool of `kind`), and with which attentions `capture`, if there is
    one, may record its decode steps. What all of it is held against is computed before, by the
    model as it came. Its own attention is in place again afterwards. Raises ModelLoadError when the
    model cannot be run at all."""
    with torch.inference_mode():
        trial = Trial(model, vocab_size, context_length, kind)
        linears = pack_linears(model, pack, compile_kernels=compile_kernels)
        norms, layers = Norms("as asked"), Layers("as asked")
        attention, why = None, "as asked"
        if compile_kernels:
            norms = fuse_norms(model) if model.device.type == "cuda" else compile_norms(model)
            why = "only where a stream's keys lie one after another"
            if kind is Spans:
                attention, why = compiled_attention_for(model.device, model.dtype)
            layers = Layers(why) if attention is None else compile_layers(model)
        verdict = _decide(trial, attention, why, layers)
        if not verdict.is_cached and (linears.state != "plain" or norms.compiled):
            # Neither path agrees: perhaps the model reads its layers' weights itself.
            if linears.state != "plain":
                linears.unpack(f"with packed ones, {verdict.reason}")
            if norms.compiled:
                norms.restore(f"with compiled ones, {verdict.reason}")
            verdict = _decide(trial, attention, why, layers)
        if verdict.attention is not None and layers.compiled:
            verdict = _decide_forward(trial, verdict, verdict.attention, vocab_size, context_length)
        if capture is not None:
            verdict = _decide_recording(trial, verdict, capture)
    logger.info("%s runs %s: %s", type(model).__name__, verdict.path, verdict.reason)
    return replace(
        verdict,
        linears=(linears.state, linears.reason),
        norms=(norms.state if norms.compiled else "torch", norms.reason),
        layers=("compiled" if layers.compiled else "torch", layers.reason),
    )


def _decide(trial: Trial, attention: CompiledAttention | None, why: str, layers: Layers) -> Verdict:
    """`attention`: our own, or None because of `why`. `layers` are given back if they differ."""
    packed, difference = trial.hold(lambda: PackedModel(trial.model, trial.pool, attention))
    if layers.compiled and difference is not None:
        layers.restore(f"with our own, {difference}")
        packed, difference = trial.hold(lambda: PackedModel(trial.model, trial.pool, attention))
    if packed is not None and layers.compiled:
        layers.restore_unused()
    if attention is not None and difference is not None:
        attention, why = None, difference
        packed, difference = trial.hold(lambda: PackedModel(trial.model, trial.pool))
        if difference is None:
            logger.warning("Attention is run as torch runs it: with our own, %s.", why)
    elif attention is not None:
        assert packed is not None
        why = "it agrees with the model's own"
        if not packed.is_compiled:
            attention, why = None, "none of the model's layers has attention that ours computes"
    if packed is None or difference is not None:
        return _fall_back(trial, difference or "")
    return Verdict(
        "packed",
        "it agrees with the model's own eager forward",
        is_cached=True,
        bytes_per_token=packed.store.bytes_per_token,
        attention=attention,
        attention_reason=why,
    )


def _decide_forward(
    trial: Trial,
    verdict: Verdict,
    attention: CompiledAttention,
    vocab_size: int,
    context_length: int,
) -> Verdict:
    """`verdict` with a shortcut, if there is one that agrees, and why or why not."""
    tried, failure = trial.attempt(
        lambda: tried_shortcut(trial.model, attention, vocab_size, context_length)
    )
    shortcut, why = tried or (None, failure)
    return replace(verdict, shortcut=shortcut, forward_reason=why)


def _decide_recording(trial: Trial, verdict: Verdict, capture: Capture) -> Verdict:
    """`verdict` with the attentions with which recorded decode steps agree, and why no others."""
    if verdict.path != "packed":
        return replace(verdict, decode_reason="the model is not run packed")
    agreeing: list[DecodeAttention] = []
    reasons = []
    for attention in decode_attentions(trial.model.device):
        difference = _difference_recorded(trial, attention, capture)
        if difference is None:
            agreeing.append(attention)
        reasons.append(
            f"{attention.name} attention: {difference or 'agrees with the eager forward'}"
        )
    return replace(verdict, decode=tuple(agreeing), decode_reason="; ".join(reasons))


def _difference_recorded(trial: Trial, attention: DecodeAttention, capture: Capture) -> str | None:
    def record() -> DecodeGraphs:
        packed = PackedModel(trial.model, trial.pool)
        graphs = DecodeGraphs(packed, [attention], capture, len(trial.streams), trial.longest)
        graphs.record(len(trial.streams), trial.longest, attentions=[attention])
        return graphs

    graphs, difference = trial.hold(record, is_decoded=True)
    if graphs is not None and difference is None and not graphs.replayed:
        difference = "no step was replayed"
    return difference


def _fall_back(trial: Trial, why: str) -> Verdict:
    config = text_config(trial.model)
    size = 2 * config.num_hidden_layers * config.hidden_size * trial.model.dtype.itemsize
    _, difference = trial.hold(lambda: OneByOneModel(trial.model))
    reason = f"packed: {why}"
    if difference is not None:
        reason += f"; with the model's own cache: {difference}; so without a cache"
    return Verdict(
        "fallback",
        reason,
        is_cached=difference is None,
        bytes_per_token=size,
        attention_reason="the model is not run packed",
    )
