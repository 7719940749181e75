"""The memo of greedy paths, against all that it was told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lmtp_replicate.client.path_memo import PathMemo
from lmtp_replicate.client.score_memo import Prefix
from lmtp_replicate.protocol.messages import Generate, TokenItem
from tests.client.greedy_place import EOS, answer

CONTEXTS = st.lists(st.integers(0, EOS), max_size=3)
ASKED = st.tuples(CONTEXTS, st.integers(1, 6), st.integers(0, 3))


@given(st.lists(ASKED), ASKED)
def test_the_memo_knows_the_paths_it_was_told_as_far_as_they_go(told, wanted) -> None:
    memo, facts = PathMemo(), dict[tuple[int, ...], int]()
    for prompt, count, best in told:
        prefix, text = Prefix(prompt), ((-1,) if not prompt else ()) + tuple(prompt)
        for item in answer(Generate(0, tuple(prompt), count, top_logprobs=best)):
            memo.learn(prefix, item, best)
            facts[text] = max(best, facts.get(text, 0))
            prefix.add(item.token)
            text += (item.token,)
    prompt, count, best = wanted
    op = Generate(3, tuple(prompt), count, top_logprobs=best)
    expected, text = [], ((-1,) if not prompt else ()) + tuple(prompt)
    for item in answer(op):
        if facts.get(text, -1) < best:
            break
        expected.append(item)
        text += (item.token,)
    assert memo.recall(op) == expected
    assert len(memo) == len(facts)


@given(st.integers(1, 9), st.lists(ASKED))
def test_the_memo_is_bounded_and_keeps_what_was_used_last(most: int, told) -> None:
    memo = PathMemo(most)
    for prompt, count, best in told:
        prefix = Prefix(prompt)
        for item in answer(Generate(0, tuple(prompt), count, top_logprobs=best)):
            memo.learn(prefix, item, best)
            prefix.add(item.token)
        assert len(memo) <= most
    kept = Generate(0, (9,), 1)
    memo.learn(Prefix((9,)), TokenItem(0, 1, -0.5), 1)
    for number in range(10, 10 + most - 1):
        memo.learn(Prefix((number,)), TokenItem(0, 1, -0.5), 1)
        assert len(memo.recall(kept)) == 1
    for number in range(50, 50 + most):
        memo.learn(Prefix((number,)), TokenItem(0, 1, -0.5), 1)
    assert memo.recall(kept) == []
