"""The engine: a loaded model, its path, its memory and its thread, behind `Engine`."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path

from lmtp_replicate.engine import kv_budget
from lmtp_replicate.engine.admission import Admission
from lmtp_replicate.engine.compiled_choice import (
    BestAndNormaliser,
    best_and_normaliser,
    choice_for,
)
from lmtp_replicate.engine.cuda_capture import capture_for
from lmtp_replicate.engine.decode_graphs import Capture, DecodeGraphs
from lmtp_replicate.engine.heap import keep_freed_memory
from lmtp_replicate.engine.huge_pages import move_weights
from lmtp_replicate.engine.interface import ModelCard, Sink, Ticket
from lmtp_replicate.engine.kv_store import KVStore
from lmtp_replicate.engine.loading import LoadedModel, load
from lmtp_replicate.engine.one_by_one import OneByOneModel
from lmtp_replicate.engine.options import LoadOptions
from lmtp_replicate.engine.pace import LEAST, LEAST_BESIDE_RECORDED, Pace
from lmtp_replicate.engine.packed import PackedModel
from lmtp_replicate.engine.pages import PagePool
from lmtp_replicate.engine.prefix import NullPrefixIndex, PrefixIndex, RadixPrefixIndex
from lmtp_replicate.engine.proof import Verdict, prove
from lmtp_replicate.engine.sampling import Sampler
from lmtp_replicate.engine.scheduler import Scheduler
from lmtp_replicate.engine.settings import EngineSettings
from lmtp_replicate.engine.step_loop import StepLoop
from lmtp_replicate.engine.tables import Tables
from lmtp_replicate.engine.threads import in_passing_thread, limit_threads
from lmtp_replicate.engine.warm_up import run_prompt
from lmtp_replicate.protocol.messages import Generate, Score

logger = logging.getLogger(__name__)


class TorchEngine:
    """`Engine` on a transformers model. Proves the path, warms up and starts its thread when it is
    made. `capture` records decode steps; None chooses by the model's device."""

    def __init__(
        self,
        loaded: LoadedModel,
        settings: EngineSettings | None = None,
        capture: Capture | None = None,
    ) -> None:
        settings = settings or EngineSettings()
        uncaptured = ""
        if not settings.decode_graphs:
            capture, uncaptured = None, "they are switched off"
        elif capture is None:
            capture, uncaptured = capture_for(loaded.model)
        # Beyond this length rotary embeddings would depend on the longest stream in the step.
        context_length = min(loaded.context_length, loaded.stable_rope_length or sys.maxsize)
        loaded = replace(loaded, context_length=context_length)
        threads = limit_threads()
        verdict = in_passing_thread(
            lambda: prove(
                loaded.model,
                loaded.vocab_size,
                loaded.context_length,
                settings.pack_linears,
                settings.compile_kernels,
                kv_budget.pool_kind(loaded.device, settings),
                capture,
            ),
            loaded.device,
        )
        if capture is None:
            verdict = replace(verdict, decode_reason=uncaptured)
        moved = move_weights(loaded.model)
        size = verdict.bytes_per_token
        pool = in_passing_thread(lambda: kv_budget.pool(loaded, size, settings), loaded.device)
        choice = in_passing_thread(lambda: _choice(loaded, settings), loaded.device)
        sampler = Sampler(loaded.vocab_size, choice)
        self._store: KVStore | None = None
        model: PackedModel | OneByOneModel | DecodeGraphs
        prefix: PrefixIndex = NullPrefixIndex()
        if verdict.path == "packed":
            packed = PackedModel(loaded.model, pool, verdict.attention, verdict.shortcut)
            self._store = packed.store
            if loaded.device.type == "cuda":
                most = min(settings.chunk_tokens, context_length)
                in_passing_thread(lambda: run_prompt(packed, sampler, most), loaded.device)
            model, verdict = _recorded(packed, verdict, capture, settings, context_length)
            if settings.reuse_prefixes:
                prefix = RadixPrefixIndex(pool)
        else:
            model = OneByOneModel(loaded.model, is_cached=verdict.is_cached)
        self._card = _card(loaded, verdict, settings, pool, threads, moved)
        least = LEAST_BESIDE_RECORDED if isinstance(model, DecodeGraphs) else LEAST
        pace = Pace(settings.chunk_tokens, least)
        self._loop = StepLoop(
            Admission(self._card, pool.tokens),
            Scheduler(
                pool,
                pace,
                prefix,
                max_streams=settings.max_streams,
                whole_prompts=model.whole_prompts,
            ),
            model,
            sampler,
            pace,
            loaded.device,
        )
        self._loop.start()

    def submit(self, op: Generate | Score, sink: Sink) -> Ticket:
        return self._loop.submit(op, sink)

    def info(self) -> ModelCard:
        details = {**self._card.details, **self._loop.statistics()}
        details["kept_bytes"] = details["kept_tokens"] * details["kv_bytes_per_token"]
        if self._store is not None:
            details["kv_bytes_used"] = self._store.end * details["kv_bytes_per_token"]
        return replace(self._card, details=details)

    @property
    def failure(self) -> str | None:
        return self._loop.failure

    def close(self) -> None:
        self._loop.close()


def open_engine(
    model: str | Path, options: LoadOptions, settings: EngineSettings | None = None
) -> TorchEngine:
    """Load `model` (a directory or a Hub id), prove its path and start. Raises ModelLoadError."""
    return TorchEngine(load_for_engine(model, options), settings or EngineSettings.of(options))


def load_for_engine(model: str | Path, options: LoadOptions) -> LoadedModel:
    """`load` in a process that is to run an engine: so that steps find their memory and the threads
    of torch's operators. Raises ModelLoadError."""
    keep_freed_memory()
    return in_passing_thread(lambda: load(model, options))


def _recorded(
    packed: PackedModel,
    verdict: Verdict,
    capture: Capture | None,
    settings: EngineSettings,
    context_length: int,
) -> tuple[PackedModel | DecodeGraphs, Verdict]:
    """`packed` with its decode steps recorded if the proof allows it and it works with the whole
    memory too, and the verdict that says so."""
    if capture is None or not verdict.decode:
        return packed, verdict
    graphs = DecodeGraphs(packed, verdict.decode, capture, settings.max_streams, context_length)
    try:
        in_passing_thread(graphs.warm_up, packed.device)
    except Exception as error:
        logger.warning("Decode steps are not recorded: the warm-up failed.", exc_info=True)
        reason = f"the warm-up failed: {type(error).__name__}: {error}"
        return packed, replace(verdict, decode=(), decode_reason=reason)
    return graphs, verdict


def _choice(loaded: LoadedModel, settings: EngineSettings) -> BestAndNormaliser:
    if not settings.compile_kernels:
        return best_and_normaliser
    return choice_for(loaded.device, loaded.model.dtype)


def _card(
    loaded: LoadedModel,
    verdict: Verdict,
    settings: EngineSettings,
    pool: PagePool,
    threads: tuple[int, str],
    moved: int,
) -> ModelCard:
    return ModelCard(
        model=loaded.model_id,
        vocab_size=loaded.vocab_size,
        context_length=loaded.context_length,
        eos_token_ids=tuple(loaded.eos_token_ids),
        bos_token_id=loaded.bos_token_id,
        revision=loaded.revision,
        architecture=loaded.architecture,
        dtype=loaded.dtype,
        dtype_reason=loaded.dtype_reason,
        quantization=loaded.quantization,
        batch_invariant=loaded.batch_invariant,
        path=verdict.path,
        path_reason=verdict.reason,
        device=str(loaded.device),
        tokenizer_fingerprint=loaded.tokenizer_fingerprint,
        versions=dict(loaded.versions),
        details={
            "kv_tokens": pool.tokens,
            "page_tokens": pool.page_tokens,
            "pages_shared": isinstance(pool, Tables),
            "kv_bytes_per_token": verdict.bytes_per_token,
            "max_streams": settings.max_streams,
            "threads": threads[0],
            "threads_reason": threads[1],
            "huge_page_bytes": moved,
            "linears": verdict.linears[0],
            "linears_reason": verdict.linears[1],
            "attention": "torch" if verdict.attention is None else "compiled",
            "attention_reason": verdict.attention_reason,
            "norms": verdict.norms[0],
            "norms_reason": verdict.norms[1],
            "layers": verdict.layers[0],
            "layers_reason": verdict.layers[1],
            "forward": "transformers" if verdict.shortcut is None else "compiled",
            "forward_reason": verdict.forward_reason,
            "decode": "recorded" if verdict.decode else "run",
            "decode_reason": verdict.decode_reason,
        },
    )
