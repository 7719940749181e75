"""The Cog runner of this model: an LMTP server and a plain text generator.

Cog reads this file without running it, so the signature below stands here in full and in literals;
all that happens is in `lmtp_replicate.serving.cog_runner`.
"""

from pathlib import Path

import cog
from cog import BaseRunner, ConcatenateIterator, Input

from lmtp_replicate.serving.cog_runner import CogRunner


class Runner(BaseRunner):
    def setup(self) -> None:
        """Load the model beside this file and warm it up."""
        self.core = CogRunner.load(Path(__file__).resolve().parent)

    def healthcheck(self) -> bool:
        """Whether predictions can be answered; where not, the platform replaces the instance."""
        return self.core.failure is None

    # A coroutine that returns a generator is on purpose: of all forms a Cog runner can have, only
    # this one streams its output while it runs and serves many predictions at once.
    @cog.streaming
    @cog.concurrent(max=32)
    async def run(
        self,
        prompt: str | None = Input(
            description="Text to continue. Leave it empty when ops_batch_json is given.",
            default=None,
        ),
        n: int = Input(
            description="Number of completions. The first is streamed, the others follow it.",
            default=1,
            ge=1,
            le=10,
        ),
        max_length: int = Input(
            description="Largest number of new tokens in each completion.",
            default=128,
            ge=1,
        ),
        temperature: float = Input(
            description="Randomness of the output: 0 always takes the likeliest token.",
            default=0.75,
            ge=0.0,
            le=5.0,
        ),
        top_p: float = Input(
            description="Sample from the likeliest tokens that together have this probability.",
            default=1.0,
            ge=0.01,
            le=1.0,
        ),
        top_k: int = Input(
            description="Sample from this many of the likeliest tokens; 0 is all of them.",
            default=0,
            ge=0,
        ),
        repetition_penalty: float = Input(
            description="Above 1 discourages words that were used before; 1 is no penalty.",
            default=1.0,
            ge=0.01,
            le=5.0,
        ),
        seed: int | None = Input(
            description="Makes the output repeatable. Leave it empty for a new one each time.",
            default=None,
            ge=0,
        ),
        ops_batch_json: str | None = Input(
            description="For LMQL: a JSON list of LMTP operations. It replaces all of the above.",
            default=None,
        ),
        encoding: str = Input(
            description="For LMQL: how the answers to ops_batch_json are written.",
            default="lmtp",
            choices=["lmtp", "lmtp-extended"],
        ),
    ) -> ConcatenateIterator[str]:
        return self.core.run(
            prompt=prompt,
            n=n,
            max_length=max_length,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            seed=seed,
            ops_batch_json=ops_batch_json,
            encoding=encoding,
        )
