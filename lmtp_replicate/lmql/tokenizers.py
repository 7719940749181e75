"""What LMQL's tokenizer and the model must agree on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

from lmtp_replicate.protocol.fingerprint import tokenizer_fingerprint

log = logging.getLogger(__name__)
_told_of: set[tuple[str, str]] = set()


class Tokenizer(Protocol):
    """The part of LMQL's tokenizer that we use. `tokenizer_impl.tokenizer` is the Hugging Face
    tokenizer where it is backed by one."""

    @property
    def eos_token_id(self) -> int | None:
        """The one EOS id that LMQL knows."""

    @property
    def tokenizer_impl(self) -> Any:
        """What it is backed by."""


def warn_of_wrong_tokenizer(tokenizer: Tokenizer, info: Mapping[str, Any]) -> None:
    """Warn, once per pair, when the model says that its tokenizer is another one: every id then
    means another text, and the answers are nonsense."""
    theirs = info.get("tokenizer_fingerprint")
    ours = fingerprint(tokenizer)
    if not theirs or not ours or theirs == ours or (ours, theirs) in _told_of:
        return
    _told_of.add((ours, theirs))
    log.warning(
        "the tokenizer that LMQL uses is not that of the model %s, so its answers will be nonsense:"
        " pass tokenizer=... with the model's own tokenizer to lmql.model(...). If you have trained"
        " or changed the tokenizer under the same name, remove LMQL's cached copy, "
        "~/.cache/lmql/tokenizer-*.pkl",
        info.get("model"),
    )


def fingerprint(tokenizer: Tokenizer) -> str | None:
    """The fingerprint of the Hugging Face tokenizer behind LMQL's; None for another kind."""
    backend = getattr(tokenizer.tokenizer_impl, "tokenizer", None)
    known: str | None = getattr(tokenizer, "_lmtp_replicate_fingerprint", None)
    if known is None and backend is not None and hasattr(backend, "get_vocab"):
        known = tokenizer_fingerprint(backend.get_vocab())
        # Hashing a large vocabulary takes a tenth of a second, and LMQL keeps its tokenizers.
        tokenizer._lmtp_replicate_fingerprint = known  # type: ignore[attr-defined]
    return known


def eos_aliases(tokenizer: Tokenizer, info: Mapping[str, Any]) -> Mapping[int, int]:
    """The tokenizer's EOS id for every other EOS id of the model."""
    known = tokenizer.eos_token_id
    if known is None:
        return {}
    return {other: known for other in info.get("eos_token_ids") or () if other != known}
