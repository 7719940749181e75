"""Random ops: prompts, masks, penalties and sampling as clients mix them."""

from __future__ import annotations

from random import Random

from lmtp_replicate.protocol.masks import Mask
from lmtp_replicate.protocol.messages import Generate, Sampling, Score
from tests.engine.tiny_models import VOCABULARY


def random_op(random: Random, stream_id: int, longest: int = 60) -> Generate | Score:
    """An op that a model of `longest` or more tokens of context accepts."""
    prompt = _ids(random, random.choice([0, 1, 2, 5, longest // 3, longest // 2]))
    if random.random() < 0.3:
        return Score(stream_id, prompt, _ids(random, random.choice([1, 2, 7, longest // 3])))
    return Generate(
        stream_id,
        prompt,
        max_tokens=random.choice([1, 2, 5, 20]),
        sampling=_sampling(random),
        mask=_mask(random),
        top_logprobs=random.choice([0, 1, 1, 3, 200]),
    )


def _ids(random: Random, count: int) -> tuple[int, ...]:
    return tuple(random.randrange(VOCABULARY) for _ in range(count))


def _sampling(random: Random) -> Sampling:
    penalties = {}
    if random.random() < 0.3:
        penalties = {
            "repetition_penalty": random.choice([1.0, 1.3, 0.8]),
            "presence_penalty": random.choice([0.0, 0.5]),
            "frequency_penalty": random.choice([0.0, 0.25]),
        }
    if random.random() < 0.6:
        return Sampling(**penalties)
    return Sampling(
        temperature=random.choice([0.5, 1.0, 1.7]),
        top_k=random.choice([0, 1, 5]),
        top_p=random.choice([1.0, 0.7]),
        seed=random.choice([None, 3]),
        **penalties,
    )


def _mask(random: Random) -> Mask | None:
    kind = random.choice(["none", "none", "allow", "forbid", "add", "one"])
    if kind == "none":
        return None
    value = {"allow": 100.0, "one": 100.0, "forbid": -100.0, "add": 2.5}[kind]
    count = 1 if kind == "one" else random.choice([2, 30])
    # Ids beyond the vocabulary are as good as absent.
    ids = [*random.sample(range(VOCABULARY), count), VOCABULARY + 1, 100_000]
    return Mask.from_logit_bias(dict.fromkeys(ids, value))
