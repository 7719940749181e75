"""Single cases of what `test_paths` says of all: a known path, a stream that is followed, and what
becomes of the follower."""

from __future__ import annotations

from dataclasses import replace

from lmtp_replicate.client.settings import Savings
from lmtp_replicate.errors import TransportError
from lmtp_replicate.protocol.masks import Mask
from lmtp_replicate.protocol.messages import FinishReason, Generate, Sampling, TokenItem
from tests.client.greedy_place import EOS, PATH, ROOM, START, TEXT, Place, Reader, check, item_for


def tokens(reader: Reader) -> list[int]:
    return [item.token for item in reader.items if isinstance(item, TokenItem)]


def begun(place: Place, count: int, **settings: int) -> Reader:
    """A stream of eight tokens that has brought `count`."""
    reader = place.ask(Generate(0, START, 8, **settings))
    place.step(place.running[0], count)
    return reader


def test_an_op_from_the_middle_of_a_path_costs_nothing() -> None:
    place = Place(Savings())
    begun(place, 8)
    reader = place.ask(Generate(1, (*START, *PATH[:3]), 4))
    assert tokens(reader) == PATH[3:7]
    assert reader.items[-1].finish_reason is FinishReason.LENGTH  # type: ignore[union-attr]
    assert len(place.sent) == 1


def test_what_is_not_known_is_asked_for_from_there() -> None:
    place = Place(Savings())
    begun(place, 8)
    reader = place.ask(Generate(1, (*START, *PATH[:3]), 9))
    assert place.sent[1].prompt == (*START, *PATH[:7])  # the last one may have filled the context
    place.finish()
    assert tokens(reader) == TEXT[4:]
    check(place, reader)


def test_a_reader_that_is_content_with_a_part_gets_what_is_known() -> None:
    place = Place(Savings())
    begun(place, 8)
    reader = place.ask(Generate(1, (*START, *PATH[:3]), 9), may_end_early=True)
    assert tokens(reader) == PATH[3:]
    assert reader.is_over
    assert len(place.sent) == 1


def test_an_op_goes_along_with_a_running_stream() -> None:
    place = Place(Savings())
    begun(place, 3)
    reader = place.ask(Generate(1, (*START, *PATH[:2]), 4))
    assert tokens(reader) == PATH[2:3]
    place.step(place.running[0], 5)
    assert tokens(reader) == PATH[2:6]
    assert reader.is_over
    assert len(place.sent) == 1


def test_an_op_may_be_ahead_of_the_stream() -> None:
    place = Place(Savings())
    begun(place, 1)
    reader = place.ask(Generate(1, (*START, *PATH[:4]), 2))
    place.step(place.running[0], 3)
    assert (tokens(reader), len(place.sent)) == ([], 1)
    place.finish()
    assert tokens(reader) == PATH[4:6]
    assert len(place.sent) == 1


def test_a_stream_that_goes_another_way_is_left_at_once() -> None:
    place = Place(Savings())
    begun(place, 1)
    other = (PATH[1] + 1) % EOS
    reader = place.ask(Generate(1, (*START, PATH[0], other), 2))
    assert len(place.sent) == 1
    place.step(place.running[0], 1)
    assert [op.prompt for op in place.sent[1:]] == [(*START, PATH[0], other)]
    place.finish()
    check(place, reader)


def test_when_the_leading_reader_leaves_the_stream_goes_on_for_the_other() -> None:
    place = Place(Savings())
    leading = begun(place, 3)
    reader = place.ask(Generate(1, (*START, *PATH[:3]), 4))
    place.leave(leading)
    assert list(place.running) == [0]
    place.step(place.running[0], 4)
    assert tokens(reader) == PATH[3:7]
    assert not place.running  # nobody reads the rest


def test_when_the_leading_stream_fails_the_other_asks_by_itself() -> None:
    place = Place(Savings())
    leading = begun(place, 3)
    reader = place.ask(Generate(1, (*START, *PATH[:3]), 4))
    place.step(place.running[0], 2)
    place.fail(place.running[0])
    assert isinstance(leading.items[-1], TransportError)
    assert place.sent[1] == Generate(1, (*START, *PATH[:5]), 2)
    place.finish()
    assert tokens(reader) == PATH[3:7]


def test_a_stream_that_has_not_begun_must_lead_far_enough() -> None:
    place = Place(Savings())
    place.ask(Generate(0, START, 3))
    place.ask(Generate(1, START, 2))
    place.ask(Generate(2, START, 5))
    assert [op.max_tokens for op in place.sent] == [3, 5]


def test_fewer_of_the_likeliest_ids_are_told_than_known_but_never_more() -> None:
    place = Place(Savings())
    begun(place, 8, top_logprobs=2)
    fewer = place.ask(Generate(1, START, 8, top_logprobs=1))
    assert tokens(fewer) == PATH
    check(place, fewer)
    place.ask(Generate(2, START, 8, top_logprobs=3))
    assert len(place.sent) == 2


def test_what_follows_an_empty_prompt_is_never_asked_for_from_the_middle() -> None:
    """The server puts a token in front of it that we do not know."""
    place = Place(Savings())
    place.ask(Generate(0, (), 3))
    place.finish()
    reader = place.ask(Generate(1, (), 6))
    assert place.sent[1].prompt == ()
    place.finish()
    check(place, reader)


def test_a_stream_that_ended_with_a_full_context_is_not_gone_on_with() -> None:
    whole = ROOM - len(START)
    place = Place(Savings())
    place.ask(Generate(0, START, whole))
    following = place.ask(Generate(1, (*START, *PATH[:2]), whole))
    place.finish()
    recalling = place.ask(Generate(2, START, whole + 5))
    place.finish()
    assert tokens(following) == TEXT[3:]
    assert tokens(recalling) == TEXT[1:]
    for reader in (following, recalling):
        assert reader.items[-1].finish_reason is FinishReason.LENGTH  # type: ignore[union-attr]


def test_where_somebody_went_on_the_context_was_not_full() -> None:
    place = Place(Savings())
    begun(place, 8)
    place.ask(Generate(1, (*START, *PATH), 2))
    place.ask(Generate(2, (*START, *PATH[:7]), 2))
    place.finish()
    sent = len(place.sent)
    assert tokens(place.ask(Generate(3, START, 9))) == TEXT[1:10]
    assert len(place.sent) == sent


def test_a_stream_that_all_are_just_leaving_is_not_joined() -> None:
    """Their thread has flagged it, the hub has not been told: it may not be sent any more."""
    place = Place(Savings(memory=False))
    leaving = place.ask(Generate(0, START, 4))
    leaving.is_abandoned = True
    equal = place.ask(Generate(1, START, 4))
    assert [op.stream_id for op in place.sent] == [0, 1]
    place.leave(leaving)
    place.finish()
    assert tokens(equal) == PATH[:4]
    assert len(place.sparing.streams) == 0


def test_a_last_token_that_is_said_twice_is_taken_once() -> None:
    """LMQL's own server does."""
    place = Place(Savings())
    reader = place.ask(Generate(0, START, 3))
    stream = place.running[0]
    place.step(stream, 2)
    following = place.ask(Generate(1, (*START, *PATH[:2]), 3))
    last = replace(item_for(stream.op, 0, PATH[:2]), finish_reason=None)
    stream.sink.put([last, replace(last, finish_reason=FinishReason.LENGTH)])
    del place.running[0]
    place.finish()
    assert tokens(following) == PATH[2:5]
    assert tokens(place.ask(Generate(2, START, 5))) == PATH[:5]
    assert tokens(reader)[:3] == PATH[:3]


def test_what_differs_from_the_path_is_asked_for() -> None:
    """A mask that allows the token changes its log probability all the same."""
    place = Place(Savings())
    begun(place, 8)
    mask = Mask.from_logit_bias({PATH[0]: 100, 4: 100})
    place.ask(Generate(1, START, 1, mask=mask))
    place.ask(Generate(2, START, 1, Sampling(temperature=0.5)))
    place.ask(Generate(3, START, 1, Sampling(repetition_penalty=1.1)))
    assert len(place.sent) == 4


def test_an_end_for_want_of_room_is_not_taken_for_a_fact() -> None:
    place = Place(Savings())
    prompt = tuple(TEXT[:-1])
    first = place.ask(Generate(0, prompt, 5))
    place.finish()
    again = place.ask(Generate(1, prompt, 5))
    assert place.sent[1].prompt == prompt
    place.finish()
    assert tokens(again) == tokens(first)
    check(place, again)


def test_a_new_version_follows_nothing_of_the_old_one() -> None:
    place = Place(Savings())
    begun(place, 3)
    place.see(1)
    place.ask(Generate(1, (*START, *PATH[:3]), 4))
    place.ask(Generate(2, (*START, *PATH[:1]), 4))
    assert len(place.sent) == 3
