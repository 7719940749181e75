"""Which calls go next: none is lost, none too many go together, everybody gets a turn."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_replicate.client.batch import Call
from lmtp_replicate.client.channel import Delivery
from lmtp_replicate.client.query import Query
from lmtp_replicate.client.waiting import Waiting
from lmtp_replicate.protocol.batch_size import BatchSize
from lmtp_replicate.protocol.codecs import encode_batch
from lmtp_replicate.protocol.limits import LIMITS, Limits
from lmtp_replicate.protocol.masks import Mask, bitset
from lmtp_replicate.protocol.messages import EXTENSIONS, Generate, ModelInfo, Op, Score


class Reader:
    """A sink that only knows whether anybody is there."""

    def __init__(self) -> None:
        self.is_abandoned = False

    def put(self, items: Iterable[Delivery]) -> None:
        raise AssertionError("nothing is answered here")


def call(stream_id: int, query: Query, *, length: int = 1) -> Call:
    return Call(Score(stream_id, (7,) * length, (5,)), Reader(), query)


def empty() -> BatchSize:
    return BatchSize(names_masks=True)


def ids(calls: Iterable[Call]) -> list[int]:
    return [call.op.stream_id for call in calls]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """So many ops fit into a batch."""
    limits = Limits(ops_per_batch=4 + 1, message_bytes=LIMITS.message_bytes)
    monkeypatch.setattr("lmtp_replicate.protocol.batch_size.LIMITS", limits)
    return 4


def test_all_that_waits_goes_together_in_order() -> None:
    waiting, first, second = Waiting(), Query(), Query()
    waiting.add([call(1, first), call(2, first)])
    waiting.add([call(3, second)])
    assert ids(waiting.take(empty(), one_burst=False)) == [1, 2, 3]
    assert not waiting.is_wanted()


def test_without_coalescing_each_burst_goes_alone() -> None:
    waiting, first, second = Waiting(), Query(), Query()
    waiting.add([call(1, first), call(2, second)])
    waiting.add([call(3, first)])
    waiting.put_back(waiting.take(empty(), one_burst=True))
    assert ids(waiting.take(empty(), one_burst=True)) == [1, 2]
    assert ids(waiting.take(empty(), one_burst=True)) == [3]


def test_a_thousand_ops_do_not_hold_up_another_querys_single_one(few: int) -> None:
    waiting, greedy, modest = Waiting(), Query(), Query()
    waiting.add([call(number, greedy) for number in range(100)])
    waiting.add([call(1000, modest)])
    assert ids(waiting.take(empty(), one_burst=False)) == [0, 1, 2, 3]
    assert ids(waiting.take(empty(), one_burst=False))[0] == 1000


def test_a_burst_that_fits_is_not_parted(few: int) -> None:
    waiting, query, other = Waiting(), Query(), Query()
    waiting.add([call(number, query) for number in range(3)])
    waiting.add([call(number, other) for number in range(3, 6)])
    assert ids(waiting.take(empty(), one_burst=False)) == [0, 1, 2]
    assert ids(waiting.take(empty(), one_burst=False)) == [3, 4, 5]


def test_one_that_is_too_large_for_any_batch_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(message_bytes=10_000)
    monkeypatch.setattr("lmtp_replicate.protocol.batch_size.LIMITS", limits)
    waiting, query = Waiting(), Query()
    waiting.add([call(1, query), call(2, query, length=5000), call(3, query)])
    taken = [ids(waiting.take(empty(), one_burst=False)) for _ in range(3)]
    assert taken == [[1], [2], [3]]


def test_what_nobody_waits_for_is_not_sent() -> None:
    waiting, query = Waiting(), Query()
    calls = [call(1, query), call(2, query)]
    waiting.add(calls)
    calls[0].channel.is_abandoned = True  # type: ignore[misc]
    assert waiting.is_wanted()
    assert ids(waiting.take(empty(), one_burst=False)) == [2]


BURSTS = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 900)), min_size=1, max_size=9), max_size=12
)


@given(BURSTS, st.booleans(), st.lists(st.booleans(), max_size=40))
def test_every_call_goes_once_in_its_querys_order_and_no_batch_is_too_large(
    bursts: list[list[tuple[int, int]]], one_burst: bool, returned: list[bool]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        limits = Limits(ops_per_batch=6, message_bytes=12_000)
        patch.setattr("lmtp_replicate.protocol.batch_size.LIMITS", limits)
        waiting, queries, number = Waiting(), [Query() for _ in range(4)], 0
        owner = {}
        for burst in bursts:
            calls = []
            for who, length in burst:
                number += 1
                calls.append(call(number, queries[who], length=length))
                owner[number] = who
            waiting.add(calls)
        sent: list[int] = []
        while waiting.is_wanted():
            batch = waiting.take(empty(), one_burst=one_burst)
            assert 1 <= len(batch) <= 5
            text = encode_batch([call.op for call in batch], model="", extended=True)
            assert len(text) <= 12_000
            if returned and returned.pop():
                waiting.put_back(batch)  # refused for now
            else:
                sent += ids(batch)
    assert sorted(sent) == list(range(1, number + 1))
    for who in range(4):
        own = [number for number in sent if owner[number] == who]
        assert own == sorted(own)


MASKS = st.builds(
    lambda allowed, forbidden, added: Mask(
        None if allowed is None else bitset(allowed),
        bitset(forbidden),
        tuple(sorted(added.items())),
    ),
    st.none() | st.sets(st.integers(0, 40_000), max_size=40),
    st.sets(st.integers(50_000, 2**20 - 1), max_size=300),
    st.dictionaries(st.integers(40_001, 49_999), st.floats(-99, 99), max_size=20),
)
IDS = st.lists(st.integers(0, 2**20 - 1), max_size=30).map(tuple)
OPS = st.builds(
    Generate, st.integers(0, 2**53), IDS, st.integers(1, 2**20), mask=MASKS
) | st.builds(Score, st.integers(0, 2**53), IDS, IDS)


@given(st.lists(OPS, max_size=8), st.booleans(), st.integers(1, 5), st.integers(2000, 60_000))
def test_a_batch_is_never_larger_than_allowed(
    ops: list[Op], names_masks: bool, repeat: int, most: int
) -> None:
    size, taken = BatchSize(names_masks=names_masks, model="owner/name"), list[Op]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmtp_replicate.protocol.batch_size.LIMITS", Limits(message_bytes=most))
        for op in ops * repeat:
            larger = size.with_op(op)
            if larger is not None:
                size = larger
                taken.append(op)
    introduced = [ModelInfo(1, frozenset(EXTENSIONS)), *taken]
    assert len(encode_batch(introduced, model="owner/name", extended=names_masks)) <= most
