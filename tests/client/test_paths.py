"""What one greedy op was told answers the others that come by, whatever becomes of the streams, and
each is told exactly what the model says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from lmtp_replicate.client import TokenStream, connect
from lmtp_replicate.client.batch import Call
from lmtp_replicate.client.channel import Delivery, Sink
from lmtp_replicate.client.hub import close_process_hub
from lmtp_replicate.client.ledger import Ledger
from lmtp_replicate.client.memory import VERSION_STANDS, Memory
from lmtp_replicate.client.path_memo import PathMemo
from lmtp_replicate.client.query import Query
from lmtp_replicate.client.score_memo import Prefix
from lmtp_replicate.client.settings import Savings
from lmtp_replicate.client.sparing import Sparing
from lmtp_replicate.errors import LmtpReplicateError, TransportError
from lmtp_replicate.protocol.masks import Mask
from lmtp_replicate.protocol.messages import FinishReason, Generate, Sampling, TokenItem
from tests.client.replicate_double import ReplicateDouble
from tests.client.test_replicate import ENDPOINT, quiet

EOS, ROOM = 5, 12
"""Tokens are 0 to 5, and a context has room for so many."""
Fact = tuple[int, float, dict[int, float]]


def says(version: int, context: Sequence[int], best: int) -> Fact:
    """The model: token, log probability and so many of the likeliest ids after `context`."""
    seed = hash((version, tuple(context)))
    ranked = sorted(range(EOS + 1), key=lambda token: hash((seed, token // 2, token)))
    told = {token: -(rank + (seed % 97) / 100) for rank, token in enumerate(ranked)}
    return ranked[0], told[ranked[0]], dict(list(told.items())[:best])


def item_for(op: Generate, version: int, produced: Sequence[int]) -> TokenItem:
    token, logprob, best = says(version, [*op.prompt, *produced], op.top_logprobs)
    reason = None
    if token == EOS:
        reason = FinishReason.STOP
    elif len(produced) + 1 == op.max_tokens or len(op.prompt) + len(produced) + 1 == ROOM:
        reason = FinishReason.LENGTH
    return TokenItem(op.stream_id, token, logprob, best, reason)


# The memo alone

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


def answer(op: Generate, version: int = 0) -> list[TokenItem]:
    """All of it."""
    items: list[TokenItem] = []
    while not items or items[-1].finish_reason is None:
        items.append(item_for(op, version, [item.token for item in items]))
    return items


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


# Any interleaving of ops, streams and versions


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(eq=False)
class Reader:
    """Of one op. since: the version that ran when it was asked for."""

    op: Generate
    may_end_early: bool
    since: int
    items: list[Delivery] = field(default_factory=list)
    is_abandoned: bool = False

    def put(self, items: Iterable[Delivery]) -> None:
        self.items += items

    @property
    def is_over(self) -> bool:
        return bool(self.items) and not (
            isinstance(self.items[-1], TokenItem) and self.items[-1].finish_reason is None
        )


@dataclass
class Running:
    """A stream on the server."""

    op: Generate
    sink: Sink
    version: int
    produced: list[int] = field(default_factory=list)


class Place:
    """An endpoint whose server does one thing at a time, when it is told to."""

    label = "org/model"

    def __init__(self, savings: Savings) -> None:
        self.savings = savings
        self.clock = Clock()
        self.memory = Memory(lambda: {"dtype": "bfloat16"}, now=self.clock)
        self.version = 0
        self.running: dict[int, Running] = {}
        self.readers: list[Reader] = []
        self.sent: list[Generate] = []
        self.sparing = Sparing(Ledger(), self._end, lambda _, calls: self._send(calls))
        self.see(0)

    def see(self, version: int) -> None:
        self.version = version
        self.memory.see_version(str(version), is_chosen=False)

    def ask(self, op: Generate, *, may_end_early: bool = False) -> Reader:
        reader = Reader(op, may_end_early, self.version)
        self.readers.append(reader)
        call = Call(op, reader, Query(), may_end_early)
        self._send(self.sparing.unanswered(self, [call]))  # type: ignore[arg-type]
        return reader

    def _send(self, calls: Sequence[Call]) -> None:
        for call in calls:
            assert isinstance(call.op, Generate)
            self.sent.append(call.op)
            self.running[call.op.stream_id] = Running(call.op, call.channel, self.version)

    def step(self, stream: Running, count: int) -> None:
        """The stream brings so many tokens, all at once."""
        items: list[Delivery] = []
        for _ in range(count):
            item = item_for(stream.op, stream.version, stream.produced)
            stream.produced.append(item.token)
            items.append(item)
            if item.finish_reason is not None:
                self._end(stream.op.stream_id)
                break
        stream.sink.put(items)

    def fail(self, stream: Running) -> None:
        self._end(stream.op.stream_id)
        stream.sink.put([TransportError("lost")])

    def leave(self, reader: Reader) -> None:
        reader.is_abandoned = True
        self.sparing.streams.leave(reader.op.stream_id)

    def _end(self, stream_id: int) -> None:
        self.running.pop(stream_id, None)

    def finish(self) -> None:
        while self.running:
            self.step(next(iter(self.running.values())), 2)


def check(place: Place, reader: Reader) -> None:
    """All that it got is what a version that has run since says there, and its end is right."""
    context, count = list(reader.op.prompt), 0
    for item in reader.items:
        if not isinstance(item, TokenItem):
            break
        versions = range(reader.since, place.version + 1)
        best = reader.op.top_logprobs
        told = (item.token, item.logprob, dict(item.top_logprobs))
        assert told in [says(version, context, best) for version in versions]
        context.append(item.token)
        count += 1
        if item.token == EOS:
            assert item.finish_reason is FinishReason.STOP
        elif count == reader.op.max_tokens or len(context) == ROOM:
            assert item.finish_reason is FinishReason.LENGTH
        elif not reader.may_end_early:
            assert item.finish_reason is None
    if not reader.is_abandoned:
        assert reader.is_over
        assert count or isinstance(reader.items[-1], LmtpReplicateError)


MOVES = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 4), st.lists(st.integers(0, EOS), max_size=2),
              st.integers(1, 7), st.integers(0, 2), st.booleans()),
    st.tuples(st.sampled_from(["step", "step", "step", "fail", "leave"]), st.integers(0, 9),
              st.integers(1, 3)),
    st.tuples(st.sampled_from(["version", "later"])),
)  # fmt: skip


@given(st.lists(MOVES, max_size=40), st.booleans(), st.booleans())
def test_whatever_happens_each_is_told_what_the_model_says(moves, memory: bool, join: bool) -> None:
    place = Place(Savings(memory=memory, join=join))
    for move in moves:
        match move:
            case ("ask", along, then, count, best, early):
                # Texts on the path of the others, or shortly beside it.
                path = [item.token for item in answer(Generate(0, (1,), 8), place.version)]
                prompt = (1, *path[:along], *then)
                number = len(place.readers)
                place.ask(Generate(number, prompt, count, top_logprobs=best), may_end_early=early)
            case ("step", index, count) if place.running:
                place.step([*place.running.values()][index % len(place.running)], count)
            case ("fail", index, _) if place.running:
                place.fail([*place.running.values()][index % len(place.running)])
            case ("leave", index, _) if place.readers:
                reader = place.readers[index % len(place.readers)]
                if not (reader.is_over or reader.is_abandoned):
                    place.leave(reader)
            case ("version",):
                place.see(place.version + 1)
            case ("later",):
                place.clock.now += VERSION_STANDS + 1
    place.finish()
    for reader in place.readers:
        check(place, reader)
    assert len(place.sparing.streams) == 0


# Single cases


def tokens(reader: Reader) -> list[int]:
    return [item.token for item in reader.items if isinstance(item, TokenItem)]


def longest_path() -> list[int]:
    """A text that fills the context and does not end."""
    for first in range(1000, 2000):
        text = [first, *(item.token for item in answer(Generate(0, (first,), ROOM)))]
        if len(text) == ROOM and text[-1] != EOS:
            return text
    raise AssertionError


TEXT = longest_path()
START, PATH = tuple(TEXT[:1]), TEXT[1:9]


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
    assert place.sent[1].prompt == (*START, *PATH)
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


# Through the whole client


async def read(stream: TokenStream) -> list[int]:
    return [item.token async for item in stream]


async def test_clients_of_several_loops_follow_one_stream(replicate: ReplicateDouble) -> None:
    replicate.engine._step_seconds = 0.01
    leading = connect(ENDPOINT).generate([5], max_tokens=40)
    assert [(await anext(leading)).token for _ in range(3)] == [6, 7, 8]

    async def follow(ahead: list[int]) -> list[int]:
        return await read(connect(ENDPOINT).generate([*range(5, 9), *ahead], max_tokens=9))

    followers = [asyncio.to_thread(asyncio.run, follow(ahead)) for ahead in ([], [9], [9, 10])]
    answers = await asyncio.gather(*followers)
    assert answers == [[*range(9 + n, 18 + n)] for n in range(3)]
    assert await read(leading) == [*range(9, 46)]
    assert len(replicate.predictions) == 1


async def test_the_leading_client_closes(replicate: ReplicateDouble) -> None:
    replicate.engine._step_seconds = 0.01
    closing = connect(ENDPOINT)
    leading = closing.generate([5], max_tokens=40)
    await anext(leading)
    following = connect(ENDPOINT).generate([5, 6], max_tokens=20)
    assert (await anext(following)).token == 7
    closing.close()
    assert await read(following) == [*range(8, 27)]
    assert len(replicate.predictions) == 1
    await quiet(replicate)


async def test_another_hub_knows_nothing(replicate: ReplicateDouble) -> None:
    for _ in range(2):
        for _ in range(2):
            assert await read(connect(ENDPOINT).generate([5], max_tokens=4)) == [6, 7, 8, 9]
        close_process_hub()
    assert len(replicate.predictions) == 2


async def test_without_memory_and_joining_all_is_asked_for(replicate: ReplicateDouble) -> None:
    client = connect(f"{ENDPOINT}?memory=off&join=off")
    for prompt in ([5], [5, 6]):
        await read(client.generate(prompt, max_tokens=3))
    assert len(replicate.predictions) == 2
