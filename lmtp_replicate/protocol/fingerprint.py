"""A short name for a tokenizer's vocabulary, computed alike by server and client.

A wrong tokenizer on the client's side gives silent nonsense: every id means another text. Both
sides therefore hash what their tokenizer calls its vocabulary, and compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b


def tokenizer_fingerprint(vocabulary: Mapping[str, int]) -> str:
    """The fingerprint of `vocabulary`, which maps each token's text to its id, added tokens
    included: what `get_vocab()` of a Hugging Face tokenizer returns.

    Equal vocabularies have equal fingerprints in every process and version, whatever the order of
    the mapping. 32 hexadecimal digits.
    """
    state = blake2b(digest_size=16)
    for token, text in sorted((token, text) for text, token in vocabulary.items()):
        encoded = text.encode("utf-8", "surrogatepass")
        state.update(f"{token} {len(encoded)} ".encode() + encoded)
    return state.hexdigest()
