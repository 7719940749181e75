"""What LMQL's beams will need is foreseen from what streams have told."""

from __future__ import annotations

from collections.abc import Sequence

from lmtp_replicate.client import TokenStream
from lmtp_replicate.client.channel import Channel
from lmtp_replicate.lmql.beams import MOST_UNUSED, Beam, Beams, Forecast
from lmtp_replicate.lmql.lengths import Lengths
from lmtp_replicate.lmql.shaped_stream import place_of
from lmtp_replicate.protocol.messages import FinishReason, Generate, TokenItem

START = Beam((1,), 0.0)
PATH = {
    (1,): {2: -0.1, 3: -2.0},
    (1, 2): {4: -0.1, 5: -1.0},
    (1, 2, 4): {6: -0.1, 7: -3.0},
}
END = place_of((1, 2, 4, 6))
"""Where the stream has got to."""


def forecast() -> Forecast:
    """That has heard the stream of `PATH`."""
    made = Forecast()
    for text, likeliest in PATH.items():
        token = max(likeliest, key=likeliest.__getitem__)
        made.learn(place_of(text), TokenItem(0, token, likeliest[token], likeliest))
    return made


def test_the_forks_that_will_be_among_the_best() -> None:
    assert forecast().forks([START], 2, {END}) == [(1, 3), (1, 2, 5)]


def test_each_is_told_once() -> None:
    made = forecast()
    assert made.forks([START], 2, {END})
    assert made.forks([START], 2, {END}) == []


def test_a_better_beam_keeps_a_fork_from_the_best() -> None:
    """Nothing is known of its continuation; it is taken to be as good as the path's."""
    other = Beam((9,), -0.5)
    assert forecast().forks([START, other], 2, {END}) == []
    assert forecast().forks([START, other], 3, {END}) == [(1, 3), (1, 2, 5)]


def test_where_a_stream_has_run_out_it_is_gone_on_with() -> None:
    assert forecast().forks([START], 1, ()) == [(1, 2, 4, 6)]


def test_nothing_comes_after_the_end_of_the_text() -> None:
    made = forecast()
    made.learn(place_of((1, 2, 4)), TokenItem(0, 6, -0.1, {6: -0.1}, FinishReason.STOP))
    assert made.forks([START], 1, ()) == []


def test_nothing_is_foreseen_of_what_is_unknown() -> None:
    assert Forecast().forks([START], 2, ()) == []


def test_no_more_is_asked_for_while_much_is_unused() -> None:
    """Of a search that goes where the scores do not say."""
    asked: list[Sequence[int]] = []
    beams = Beams(lambda text, *_: asked.append(text))
    for number in range(3 * MOST_UNUSED):
        text = (number, 1)
        beams.step([Beam(text, 0.0)])
        made = beams.shaped(stream(text), Lengths(), None)
        made._read(TokenItem(0, 2, -0.1, {2: -0.1, 3: -0.2}))
    assert len(asked) == MOST_UNUSED
    beams.shaped(stream(asked[0]), Lengths(), None)
    beams.step([Beam((99, 1), 0.0)])
    beams.shaped(stream((99, 1)), Lengths(), None)._read(TokenItem(0, 2, -0.1, {2: -0.1, 3: -0.2}))
    assert asked[MOST_UNUSED:] == [(99, 1, 3)]


def stream(prompt: Sequence[int]) -> TokenStream:
    """That nobody answers."""

    def nowhere(_: TokenStream) -> Channel:
        raise AssertionError

    return TokenStream(Generate(0, tuple(prompt), 8, top_logprobs=2), nowhere)
