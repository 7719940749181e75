"""A session gives every stream one ending, in words its peer understands."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtp_replicate.protocol.limits import LIMITS
from lmtp_replicate.protocol.masks import Mask
from lmtp_replicate.protocol.messages import (
    Cancel,
    Dialect,
    Ending,
    ErrorItem,
    FinishReason,
    Generate,
    Info,
    Item,
    ModelInfo,
    Score,
    TokenItem,
    is_last,
)
from lmtp_replicate.serving.session import Session
from tests.scripted_engine import VOCABULARY, ScriptedEngine
from tests.serving.stepwise_engine import StepwiseEngine


class Peer:
    """Collects what a session delivers, by stream, and waits for endings."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self._arrived = threading.Condition()

    def deliver(self, items: Sequence[Item]) -> None:
        with self._arrived:
            self.items += items
            self._arrived.notify_all()

    def of(self, stream_id: int | None) -> list[Item]:
        return [item for item in self.items if getattr(item, "stream_id", -1) == stream_id]

    def wait_for(self, count: int) -> list[Item]:
        """All items, once there are `count`."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.items) >= count, timeout=10)
        return self.items

    def wait_for_endings(self, count: int) -> None:
        with self._arrived:
            done = self._arrived.wait_for(lambda: sum(map(is_last, self.items)) >= count, 10)
        assert done, self.items


@pytest.fixture
def peer() -> Peer:
    return Peer()


def tokens(items: Sequence[Item]) -> list[int]:
    return [item.token for item in items if isinstance(item, TokenItem)]


def test_a_batch_is_answered_stream_by_stream(engine: ScriptedEngine, peer: Peer) -> None:
    session = Session(engine, peer.deliver)
    session.receive([Generate(1, (5,), 3), Score(2, (5,), (6, 7)), Generate(3, (20,), 1)])
    peer.wait_for_endings(3)
    assert tokens(peer.of(1)) == [6, 7, 8]
    assert tokens(peer.of(2)) == [6, 7]
    assert tokens(peer.of(3)) == [21]
    assert [sum(map(is_last, peer.of(stream))) for stream in (1, 2, 3)] == [1, 1, 1]
    assert session.open_streams == 0


def test_model_info_does_not_wait_for_the_engine(stepwise: StepwiseEngine, peer: Peer) -> None:
    session = Session(stepwise, peer.deliver)
    session.receive([Generate(1, (5,), 3), ModelInfo(2)])
    (info,) = peer.items  # no token was made, and none has to be
    assert isinstance(info, Info)
    assert info.model_info["model"] == "scripted"
    assert info.model_info["vocab_size"] == VOCABULARY
    assert "cancel" in info.model_info["extensions"]
    assert info.model_info["limits"]["ops_per_batch"] > 0
    assert "lmtp-replicate" in info.model_info["versions"]


def test_an_id_in_use_is_refused_and_the_live_stream_goes_on(
    stepwise: StepwiseEngine, peer: Peer
) -> None:
    session = Session(stepwise, peer.deliver)
    session.receive([Generate(1, (5,), 3)])
    session.receive([Generate(1, (9,), 3), ErrorItem(1, "prompt: is missing")])
    first, second = peer.items
    assert isinstance(first, ErrorItem) and isinstance(second, ErrorItem)
    assert first.stream_id is None and second.stream_id is None  # else the peer ends stream 1
    assert "stream 1" in first.error and "taken" in first.error
    assert "stream 1" in second.error and "prompt: is missing" in second.error
    stepwise.allow(3)
    peer.wait_for_endings(3)
    assert tokens(peer.of(1)) == [6, 7, 8]


def test_an_id_is_free_again_when_its_stream_has_ended(engine: ScriptedEngine, peer: Peer) -> None:
    session = Session(engine, peer.deliver)
    for start in (5, 30):
        session.receive([Generate(1, (start,), 2)])
        peer.wait_for_endings(1 if start == 5 else 2)
    assert tokens(peer.of(1)) == [6, 7, 31, 32]


def test_a_flood_of_ops_is_refused_beyond_a_number_of_open_streams(
    stepwise: StepwiseEngine, peer: Peer
) -> None:
    """A peer could otherwise fill the memory with ops that wait for their turn."""
    session = Session(stepwise, peer.deliver, dialect=Dialect.EXTENDED)
    most = LIMITS.open_streams
    session.receive(Generate(stream_id, (5,), 1) for stream_id in range(most + 2))
    refused = peer.wait_for(2)
    assert [item.stream_id for item in refused if isinstance(item, ErrorItem)] == [most, most + 1]
    session.cancel()
    session.receive([Generate(most, (5,), 1)])  # there is room again
    stepwise.allow(most)
    peer.wait_for_endings(2 + most + 1)
    assert tokens(peer.of(most)) == [6]


def test_a_broken_op_loses_nothing_else(engine: ScriptedEngine, peer: Peer) -> None:
    session = Session(engine, peer.deliver)
    session.receive([ErrorItem(1, "max_tokens: is no number"), Generate(2, (5,), 2)])
    peer.wait_for_endings(2)
    assert peer.of(1) == [ErrorItem(1, "max_tokens: is no number")]
    assert tokens(peer.of(2)) == [6, 7]


def test_cancel_ends_one_stream_and_unknown_ids_are_no_error(
    stepwise: StepwiseEngine, peer: Peer
) -> None:
    session = Session(stepwise, peer.deliver, dialect=Dialect.EXTENDED)
    session.receive([Generate(1, (5,), 100), Generate(2, (20,), 4)])
    stepwise.allow(4)
    peer.wait_for(4)
    session.receive([Cancel(1), Cancel(77)])
    stepwise.allow(100)
    peer.wait_for_endings(2)
    assert peer.of(1)[-1] == Ending(1, FinishReason.CANCELLED)
    assert len(peer.of(1)) <= 4  # two tokens, at most one more step, the ending
    assert tokens(peer.of(2)) == [21, 22, 23, 24]


def test_closing_takes_the_streams_out_of_the_engine(stepwise: StepwiseEngine, peer: Peer) -> None:
    session = Session(stepwise, peer.deliver)
    session.receive([Generate(1, (5,), 100), Generate(2, (5,), 100)])
    session.close()
    other = Peer()
    Session(stepwise, other.deliver).receive([Generate(1, (5,), 1)])
    stepwise.allow(3)  # one token for each at most, and the other session's
    other.wait_for_endings(1)
    Session(stepwise, other.deliver).receive([Generate(2, (5,), 1)])
    stepwise.allow(1)
    other.wait_for_endings(2)
    assert stepwise.open_streams <= 1  # the last one, until its step is over
    assert peer.items == []
    session.receive([Generate(3, (5,), 1), ModelInfo(4)])
    assert peer.items == []


@pytest.mark.parametrize("made", range(1, 8))
def test_upstream_is_told_of_a_crash_so_that_it_cannot_hang(
    made: int, stepwise: StepwiseEngine, peer: Peer
) -> None:
    """LMQL 0.7.3 waits for ever on an error after the fourth token (LMQL issue 272)."""
    session = Session(stepwise, peer.deliver)
    session.receive([Generate(1, (5,), 100)])
    stepwise.allow(made)
    stepwise.wait_until_made(made)
    assert len(peer.items) == (made if made < 4 else made - 1)
    stepwise.crash("out of memory")
    *before, last = peer.of(1)
    if made < 4:
        assert last == ErrorItem(1, "out of memory")
        assert tokens(before) == list(range(6, 6 + made))
    else:
        assert isinstance(last, TokenItem) and last.finish_reason is FinishReason.LENGTH
        assert tokens(peer.of(1)) == list(range(6, 6 + made))


def test_upstream_gets_tokens_one_step_late_and_only_from_the_fourth_on(
    stepwise: StepwiseEngine, peer: Peer
) -> None:
    Session(stepwise, peer.deliver).receive([Generate(1, (5,), 6)])
    seen = []
    for made in range(1, 6):
        stepwise.allow(1)
        stepwise.wait_until_made(made)
        seen.append(len(peer.items))
    assert seen == [1, 2, 3, 3, 4]
    stepwise.allow(1)
    peer.wait_for_endings(1)
    assert tokens(peer.items) == [6, 7, 8, 9, 10, 11]


def test_an_extended_peer_gets_every_token_and_the_error_at_once(
    stepwise: StepwiseEngine, peer: Peer
) -> None:
    session = Session(stepwise, peer.deliver, dialect=Dialect.EXTENDED)
    session.receive([Generate(1, (5,), 100)])
    stepwise.allow(6)
    stepwise.wait_until_made(6)
    assert tokens(peer.items) == [6, 7, 8, 9, 10, 11]
    stepwise.crash("out of memory")
    assert peer.items[-1] == ErrorItem(1, "out of memory")


def test_a_peer_that_turns_out_to_be_extended_gets_what_was_held_back(
    stepwise: StepwiseEngine, peer: Peer
) -> None:
    session = Session(stepwise, peer.deliver)
    session.receive([Generate(1, (5,), 100)])
    stepwise.allow(5)
    stepwise.wait_until_made(5)
    assert len(peer.items) == 4
    session.dialect = Dialect.EXTENDED
    stepwise.allow(1)
    stepwise.wait_until_made(6)
    assert tokens(peer.items) == [6, 7, 8, 9, 10, 11]


def test_a_score_that_fails_says_so_to_upstream_too(engine: ScriptedEngine, peer: Peer) -> None:
    """Its errors cannot hang LMQL, and a score cut short would be taken for the whole."""
    Session(engine, peer.deliver).receive([Score(1, (5,), (6, 7, 8, 9, 10, VOCABULARY))])
    peer.wait_for_endings(1)
    assert isinstance(peer.of(1)[-1], ErrorItem)


def test_an_empty_score_ends(engine: ScriptedEngine, peer: Peer) -> None:
    Session(engine, peer.deliver).receive([Score(1, (5,), ())])
    assert peer.wait_for(1) == [Ending(1, FinishReason.STOP)]


@pytest.mark.parametrize("dialect", Dialect)
def test_cancelling_everything_ends_every_stream_without_the_engine(
    dialect: Dialect, stepwise: StepwiseEngine, peer: Peer
) -> None:
    session = Session(stepwise, peer.deliver, dialect=dialect)
    session.receive([Generate(1, (5,), 100)])
    stepwise.allow(5)
    stepwise.wait_until_made(5)
    session.receive([Generate(2, (20,), 100)])
    session.cancel()  # the engine stands still
    one, two = peer.of(1)[-1], peer.of(2)[-1]
    if dialect is Dialect.EXTENDED:
        assert one == Ending(1, FinishReason.CANCELLED)
        assert two == Ending(2, FinishReason.CANCELLED)
    else:
        assert isinstance(one, TokenItem) and one.finish_reason is FinishReason.LENGTH
        assert isinstance(two, ErrorItem)
    assert tokens(peer.of(1)) == [6, 7, 8, 9, 10]


def test_after_a_crash_new_ops_are_refused(engine: ScriptedEngine, peer: Peer) -> None:
    engine.crash("out of memory")
    Session(engine, peer.deliver).receive([Generate(1, (5,), 2), Score(2, (5,), (6,))])
    assert peer.items == [ErrorItem(1, "out of memory"), ErrorItem(2, "out of memory")]


def test_ids_outside_the_vocabulary_are_ignored_and_logged_once(
    engine: ScriptedEngine, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    session = Session(engine, peer.deliver)
    outside = Mask.from_logit_bias({40: 100.0, 64: 100.0, 70000: 100.0})
    with caplog.at_level(logging.WARNING):
        session.receive([Generate(1, (5,), 2, mask=outside), Generate(2, (5,), 2, mask=outside)])
        peer.wait_for_endings(2)
    assert tokens(peer.of(1)) == [40, 40]
    assert len([record for record in caplog.records if "outside" in record.message]) == 1


def test_a_whitelist_of_nothing_but_foreign_ids_is_an_error_on_its_stream(
    engine: ScriptedEngine, peer: Peer
) -> None:
    mask = Mask.from_logit_bias({64: 100.0})
    Session(engine, peer.deliver).receive([Generate(1, (5,), 2, mask=mask), Generate(2, (5,), 2)])
    peer.wait_for_endings(2)
    (error,) = peer.of(1)
    assert isinstance(error, ErrorItem) and "no token" in error.error
    assert tokens(peer.of(2)) == [6, 7]


def test_usage_counts_what_was_used(engine: ScriptedEngine, peer: Peer) -> None:
    session = Session(engine, peer.deliver)
    session.receive(
        [Generate(1, (5, 6, 7), 4), Score(2, (5,), (6, 7)), ErrorItem(3, "no"), ModelInfo(4)]
    )
    peer.wait_for_endings(4)
    assert session.usage().usage == {
        "ops": 2,
        "prompt_tokens": 4,
        "output_tokens": 4,
        "scored_tokens": 2,
        "refused_ops": 1,
    }


Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["generate", "score", "cancel", "broken", "info", "extend"]),
        st.integers(0, 4),
        st.integers(0, 9),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, crash_at=st.none() | st.integers(0, 25), cancel_all=st.booleans())
def test_any_interleaving_gives_every_op_one_ending_and_tokens_in_order(
    steps: list[Step], crash_at: int | None, cancel_all: bool
) -> None:
    engine, peer = ScriptedEngine(), Peer()
    session = Session(engine, peer.deliver)
    answered = 0
    try:
        for index, (kind, stream_id, size) in enumerate(steps):
            if index == crash_at:
                engine.crash("out of memory")
            if kind == "extend":
                session.dialect = Dialect.EXTENDED
            elif kind == "cancel":
                session.receive([Cancel(stream_id)])
            else:
                answered += 1
                session.receive([_op(kind, stream_id, size)])
        if cancel_all:
            session.cancel()
        peer.wait_for_endings(answered)
    finally:
        engine.close()
    assert sum(map(is_last, peer.items)) == answered
    assert session.open_streams == 0
    for stream_id in range(5):
        _check_order(peer.of(stream_id))


def _op(kind: str, stream_id: int, size: int) -> Generate | Score | ErrorItem | ModelInfo:
    match kind:
        case "generate":
            return Generate(stream_id, (5,), size + 1)
        case "score":
            return Score(stream_id, (5,), tuple(range(6, 6 + size)))
        case "broken":
            return ErrorItem(stream_id, "broken")
        case _:
            return ModelInfo(stream_id)


def _check_order(items: Sequence[Item]) -> None:
    """The scripted engine counts up from the prompt, so each stream's tokens are 6, 7, 8 ..."""
    expected = 6
    for item in items:
        if isinstance(item, TokenItem):
            assert item.token == expected
            expected += 1
        if is_last(item) and not isinstance(item, Info):
            expected = 6
