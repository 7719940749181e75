"""A byte-level tokenizer made in code: every text is its UTF-8 bytes, no file, no training."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END = "<|end|>"


def tiny_tokenizer(special: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """256 byte tokens (ids 0 to 255), then `END` (256, the EOS), then `special` tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in (END, *special)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)
