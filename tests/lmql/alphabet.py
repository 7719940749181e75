"""A tiny language for LMQL's tests: a byte-level BPE tokenizer of at most 64 tokens, and a model
without torch that continues the alphabet.

After a letter comes the next one, after "z" a full stop, after a full stop a line break, after a
line break the end (an EOS that is not the tokenizer's); after a colon comes " yes".
"""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from string import ascii_lowercase

from lmtp_replicate.engine.interface import ModelCard
from lmtp_replicate.protocol.fingerprint import tokenizer_fingerprint
from lmtp_replicate.serving.cog_runner import CogRunner
from tests.scripted_engine import EOS, ScriptedEngine

OTHER_EOS = 2
SPACE, BREAK = "Ġ", "Ċ"
WORDS = ("yes", "no", "maybe")
CRASH = "!"
"""In the prompt: the engine fails once it has reached "y"."""
DIE = "-"
"""In the prompt: the whole process dies there, once the test opens the named pipe `hold`."""


def vocabulary() -> dict[str, int]:
    """Text of each token (byte-level) to its id."""
    single = [*ascii_lowercase, SPACE, BREAK, *".,:?-!", *"0123456789"]
    merged = [SPACE + word[:end] for word in WORDS for end in range(1, len(word) + 1)]
    tokens = ["<bos>", "<eos>", "<end>", *single, *dict.fromkeys(merged)]
    assert len(tokens) <= 64
    return {token: number for number, token in enumerate(tokens)}


def merges() -> list[tuple[str, str]]:
    return list(
        dict.fromkeys((SPACE + word[:end], word[end]) for word in WORDS for end in range(len(word)))
    )


def save_tokenizer(folder: Path, *, shift: int = 0) -> Path:
    """Write the tokenizer below `folder`; a `shift` gives another one, with other ids. LMQL keeps
    tokenizers by name, so the path holds a hash of the content."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = vocabulary()
    names = list(known)
    names[3:] = names[3 + shift :] + names[3 : 3 + shift]
    known = {name: number for number, name in enumerate(names)}
    digest = blake2b(json.dumps(known).encode(), digest_size=8).hexdigest()
    path = folder / f"alphabet-{digest}"
    if not path.exists():
        backend = Tokenizer(models.BPE(vocab=known, merges=merges()))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>"
        ).save_pretrained(path)
    return path


def favourite(token: int) -> int:
    """What comes after `token`."""
    ids = vocabulary()
    names = list(ids)
    name = names[token] if token < len(names) else "a"
    special = {"z": ".", ".": BREAK, BREAK: "<end>", ":": SPACE + "yes"}
    if name in special:
        return ids[special[name]]
    if name in ascii_lowercase:
        return ids[chr(ord(name) + 1)]
    return ids["a"]


FAVOURITES = [favourite(token) for token in range(64)]


def logits(context: Sequence[int]) -> list[float]:
    """The favourite is best by far; the others differ, so that no two beams are equal."""
    best = FAVOURITES[context[-1] if context else 0]
    return [6.0 if token == best else -0.05 * ((token - best) % 64) for token in range(64)]


def logprob(context: Sequence[int], token: int) -> float:
    """The oracle: natural log probability of `token`, without a mask."""
    values = logits(context)
    return values[token] - math.log(sum(map(math.exp, values)))


class AlphabetEngine(ScriptedEngine):
    """The model; it breaks where the text says so."""

    def __init__(self) -> None:
        super().__init__(self._logits)

    def _logits(self, context: Sequence[int]) -> list[float]:
        ids = vocabulary()
        if context and context[-1] == ids["y"]:
            hold = Path("hold")
            if ids[DIE] in context and hold.is_fifo():
                hold.open().close()  # until the test opens it too
                hold.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            if ids[CRASH] in context:
                self.crash("the engine broke in the middle")
        return logits(context)

    def info(self) -> ModelCard:
        return replace(
            super().info(),
            model="alphabet",
            eos_token_ids=(EOS, OTHER_EOS),
            tokenizer_fingerprint=tokenizer_fingerprint(vocabulary()),
        )


def runner() -> CogRunner:
    """For a work directory's run.py."""
    return CogRunner(AlphabetEngine())
