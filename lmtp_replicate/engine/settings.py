"""The few quantities of an engine that whoever starts it may choose. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from lmtp_replicate.engine.options import LoadOptions, PackLinears


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """kv_cache_bytes: memory for keys and values; None takes what the device can spare.
    page_tokens: tokens per page. max_streams: streams in one step; more wait their turn.
    chunk_tokens: most tokens of prompts in one step (fewer where that would take long, see `Pace`).
    pack_linears, compile_kernels, decode_graphs: as in `LoadOptions`.
    share_pages: whether streams with a common prefix have its keys and values in memory once, for
    which attention gathers what it reads; if not, each reads its copy as it lies. None: on GPUs.
    reuse_prefixes: whether tokens that were run for one stream are known to the next ones; off, the
    results are the same and every prompt is run from its start."""

    kv_cache_bytes: int | None = None
    page_tokens: int = 16
    max_streams: int = 128
    chunk_tokens: int = 2048
    pack_linears: PackLinears = "all"
    compile_kernels: bool = True
    decode_graphs: bool = False
    share_pages: bool | None = None
    reuse_prefixes: bool = True

    @classmethod
    def of(cls, options: LoadOptions) -> Self:
        """The settings that come with a model's options; all others are the defaults."""
        return cls(
            kv_cache_bytes=options.kv_cache_bytes,
            pack_linears=options.pack_linears,
            compile_kernels=options.compile_kernels,
            decode_graphs=options.decode_graphs,
        )

    def __post_init__(self) -> None:
        for name in ("page_tokens", "max_streams", "chunk_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
