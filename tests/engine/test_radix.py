"""The radix tree against a plain list of keys."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lmtp_replicate.engine.radix import Key, RadixTree

KEYS = st.lists(st.integers(0, 2), max_size=6).map(tuple)


def common(one: Key, other: Key) -> int:
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    return same


class Tree(RuleBasedStateMachine):
    """`entries`: every key with its value; keys may repeat, values do not."""

    def __init__(self) -> None:
        super().__init__()
        self.tree: RadixTree[int] = RadixTree()
        self.entries: list[tuple[Key, int]] = []
        self.inserted = 0

    @rule(key=KEYS)
    def insert(self, key: Key) -> None:
        self.inserted += 1
        self.tree.insert(key, self.inserted)
        self.entries.append((key, self.inserted))

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.entries))
        self.entries.remove(entry)
        self.tree.remove(*entry)

    @rule(key=KEYS)
    def longest(self, key: Key) -> None:
        length, values = self.tree.longest(key)
        assert length == max((common(key, known) for known, _ in self.entries), default=0)
        assert sorted(values) == [v for known, v in self.entries if common(key, known) == length]

    @rule(key=KEYS)
    def prefixes(self, key: Key) -> None:
        expected = [v for known, v in self.entries if key[: len(known)] == known]
        assert sorted(self.tree.prefixes(key)) == expected

    @invariant()
    def no_node_is_useless(self) -> None:
        nodes = list(self.tree._root.children.values())
        for node in nodes:
            assert node.values or len(node.children) > 1
            assert all(child.edge[0] == first for first, child in node.children.items())
            nodes += node.children.values()


TestTree = Tree.TestCase
