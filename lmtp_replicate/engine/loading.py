"""From a directory or Hub id to a model in memory, ready for the engine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lmtp_replicate.engine import model_facts
from lmtp_replicate.engine.causality import require_causal
from lmtp_replicate.engine.checkpoint import Checkpoint, find_checkpoint
from lmtp_replicate.engine.gpu import choose_kernels, make_current
from lmtp_replicate.engine.load_failures import translated
from lmtp_replicate.engine.options import QUANTIZATION_PREFIXES, LoadOptions
from lmtp_replicate.engine.precision import (
    Precision,
    Quantization,
    choose_precision,
    choose_quantization,
)
from lmtp_replicate.errors import ModelLoadError
from lmtp_replicate.protocol.fingerprint import tokenizer_fingerprint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model in eval mode, without gradients, and what is known about it.

    tokenizer: the checkpoint's, or None where it has none. device: where the input embeddings
    are. stable_rope_length: see `model_facts`. The other fields are those of `ModelCard`.
    """

    model: Any
    tokenizer: Any | None
    model_id: str
    revision: str | None
    architecture: str
    dtype: str
    dtype_reason: str
    quantization: str | None
    batch_invariant: bool
    device: torch.device
    vocab_size: int
    context_length: int
    stable_rope_length: int | None
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    tokenizer_fingerprint: str | None
    versions: Mapping[str, str]


def load(model: str | Path, options: LoadOptions) -> LoadedModel:
    """Load `model`, a directory or a Hub id.

    Weights go straight to their device in their final dtype. Raises ModelLoadError, which says
    what to do, when that is impossible; nothing is printed.
    """
    checkpoint = find_checkpoint(model, options.revision)
    with translated(str(model)):
        config = _config(checkpoint, options)
        device = _device(options)
        choose_kernels(device)
        make_current(device)
        saved = _saved_dtype(config)
        precision = choose_precision(options.dtype, saved, device)
        own = getattr(config, "quantization_config", None)
        quantization = choose_quantization(options, _as_dict(own), precision.torch_dtype)
        tokenizer = _tokenizer(checkpoint, options)
        network = _network(checkpoint, options, device, precision, quantization)
        loaded = _described(str(model), checkpoint, network, tokenizer, precision, quantization)
    # The model's own defaults (temperature, top_k ...) must never reach an op.
    network.generation_config = type(network.generation_config)()
    logger.info("Loaded %s in %s (%s).", model, precision.dtype, precision.reason)
    return loaded


def _config(checkpoint: Checkpoint, options: LoadOptions) -> Any:
    config = AutoConfig.from_pretrained(
        checkpoint.source,
        revision=checkpoint.revision,
        trust_remote_code=options.trust_remote_code,
    )
    if getattr(config, "is_encoder_decoder", False):
        raise ModelLoadError(
            f"{checkpoint.source}: is an encoder-decoder model; only decoder-only (causal) "
            "language models are served"
        )
    return config


def _device(options: LoadOptions) -> torch.device:
    """The device that decides on the dtype; with a device map, that of the fastest kind."""
    if options.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError(f"device {options.device}: torch sees no GPU here; use device = cpu")
    return device


def _saved_dtype(config: Any) -> str | None:
    """The dtype the checkpoint says it was saved in, by name."""
    for each in (config, config.get_text_config(decoder=True)):
        dtype = getattr(each, "dtype", None)
        if dtype is not None:
            return str(dtype).removeprefix("torch.")
    return None


def _as_dict(config: Any) -> dict[str, Any] | None:
    if config is None or isinstance(config, dict):
        return config
    converted: dict[str, Any] = config.to_dict()
    return converted


def _tokenizer(checkpoint: Checkpoint, options: LoadOptions) -> Any | None:
    if not checkpoint.has_tokenizer:
        logger.warning("%s has no tokenizer.", checkpoint.source)
        return None
    return AutoTokenizer.from_pretrained(
        checkpoint.source,
        revision=checkpoint.revision,
        trust_remote_code=options.trust_remote_code,
    )


def _network(
    checkpoint: Checkpoint,
    options: LoadOptions,
    device: torch.device,
    precision: Precision,
    quantization: Quantization,
) -> Any:
    arguments = {
        key: value
        for key, value in options.model_args.items()
        if not key.startswith(QUANTIZATION_PREFIXES)
    }
    if quantization.config is not None:
        arguments["quantization_config"] = quantization.config
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained  # its annotation tells too little
    network, report = from_pretrained(
        checkpoint.source,
        revision=checkpoint.revision,
        dtype=precision.torch_dtype,
        device_map=options.device_map or {"": str(device)},
        trust_remote_code=options.trust_remote_code,
        # None: safetensors first, then what torch's restricted unpickler accepts.
        use_safetensors=None if options.allow_pickle else True,
        output_loading_info=True,
        **arguments,
    )
    _require_all_weights(checkpoint, report)
    _require_no_offload(checkpoint, network)
    network.requires_grad_(False)
    require_causal(network.eval(), checkpoint.source)
    return network


def _require_all_weights(checkpoint: Checkpoint, report: Mapping[str, Any]) -> None:
    """transformers fills what a checkpoint lacks with random numbers and only warns."""
    for kind in ("missing_keys", "mismatched_keys"):
        names = sorted(str(name) for name in report.get(kind) or ())
        if names:
            raise ModelLoadError(
                f"{checkpoint.source}: is incomplete or not a causal language model; "
                f"{kind.replace('_', ' ')}: {', '.join(names[:3])} ({len(names)} in all)"
            )


def _require_no_offload(checkpoint: Checkpoint, network: Any) -> None:
    places = {str(place) for place in getattr(network, "hf_device_map", {}).values()}
    if "disk" in places or ("cpu" in places and len(places) > 1):
        raise ModelLoadError(
            f"{checkpoint.source}: does not fit the GPUs' memory, and parts on the CPU or disk "
            'would be too slow to serve; use quantize = "8bit" or "4bit", or more GPUs'
        )


def _described(
    name: str,
    checkpoint: Checkpoint,
    network: Any,
    tokenizer: Any | None,
    precision: Precision,
    quantization: Quantization,
) -> LoadedModel:
    config = network.config.get_text_config(decoder=True)
    head = network.get_output_embeddings()
    width = config.vocab_size if head is None else head.weight.shape[0]
    vocab_size = width if tokenizer is None else min(len(tokenizer), width)
    # The tokenizer's first: it is the one a client knows.
    sources = (tokenizer, network.generation_config, network.config, config)
    return LoadedModel(
        model=network,
        tokenizer=tokenizer,
        model_id=name,
        revision=checkpoint.revision,
        architecture=type(network).__name__,
        dtype=precision.dtype,
        dtype_reason=precision.reason,
        quantization=quantization.name,
        batch_invariant=quantization.batch_invariant,
        device=network.get_input_embeddings().weight.device,
        vocab_size=vocab_size,
        context_length=model_facts.context_length(config, tokenizer),
        stable_rope_length=model_facts.stable_rope_length(config),
        eos_token_ids=model_facts.eos_token_ids(sources, vocab_size),
        bos_token_id=model_facts.bos_token_id(sources, vocab_size),
        tokenizer_fingerprint=tokenizer and tokenizer_fingerprint(tokenizer.get_vocab()),
        versions=_versions(quantization),
    )


def _versions(quantization: Quantization) -> dict[str, str]:
    packages = ["lmtp-replicate", "torch", "transformers"]
    if quantization.config is not None:
        packages.append("bitsandbytes")
    return {package: metadata.version(package) for package in packages}
