"""The memo of scores, against all facts it was told."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from lmtp_replicate.client.score_memo import Prefix, ScoreMemo

TOKENS = st.integers(0, 3)
SEQUENCES = st.lists(TOKENS, max_size=4)


def logprob(prompt: Sequence[int], before: Sequence[int], token: int) -> float:
    """The fact itself. The model puts a BOS (4) where the prompt is empty."""
    return -float("".join(map(str, [*(prompt or [4]), *before, token])))


def tell(memo: ScoreMemo, prompt: list[int], following: list[int]) -> dict[tuple[int, ...], float]:
    """What is known then: the tokens `following`, each with its rival. A text that begins without
    a prompt is another one than that prompt."""
    prefix, facts, before = Prefix(prompt), {}, list[int]()
    for token in following:
        both = {t: logprob(prompt, before, t) for t in (token, (token + 1) % 4)}
        memo.learn(prefix, both)
        start = (-1,) if not prompt else ()
        facts |= {(*start, *prompt, *before, t): value for t, value in both.items()}
        before.append(token)
        prefix.add(token)
    return facts


@given(st.lists(st.tuples(SEQUENCES, SEQUENCES)), SEQUENCES, st.lists(TOKENS, min_size=1))
def test_it_knows_all_it_was_told_and_nothing_else(told, prompt, scored) -> None:
    memo, facts = ScoreMemo(), dict[tuple[int, ...], float]()
    for known_prompt, following in told:
        facts |= tell(memo, known_prompt, following)
    start = (-1,) if not prompt else ()
    wanted = [facts.get((*start, *prompt, *scored[: i + 1])) for i in range(len(scored))]
    assert memo.recall(prompt, scored) == (None if None in wanted else wanted)
    assert len(memo) == len(facts)


@given(st.integers(1, 9), st.lists(st.tuples(SEQUENCES, SEQUENCES)))
def test_it_is_bounded_and_keeps_what_was_used_last(most: int, told) -> None:
    memo = ScoreMemo(most)
    for prompt, following in told:
        tell(memo, prompt, following)
        assert len(memo) <= most
    memo.learn(Prefix([8]), {2: -0.5})
    for token in range(10, 10 + most - 1):
        memo.learn(Prefix([9]), {token: -1.0})
        assert memo.recall([8], [2]) == [-0.5]
    for token in range(20, 20 + most):
        memo.learn(Prefix([9]), {token: -1.0})
    assert memo.recall([8], [2]) is None


def test_the_first_answer_stays() -> None:
    memo = ScoreMemo()
    memo.learn(Prefix([1]), {2: -0.5})
    memo.learn(Prefix([1]), {2: -0.6})
    assert memo.recall([1], [2]) == [-0.5]
