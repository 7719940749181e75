"""A radix tree: values by sequences of token ids, found by their longest common prefix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

Key = tuple[int, ...]
Value = TypeVar("Value")


class _Node(Generic[Value]):
    """What follows a prefix of some keys. `edge`: the ids that lead here from the parent node, at
    least one (but for the root). A node without values has at least two children (but the root),
    so there are never more than twice as many nodes as values."""

    __slots__ = ("children", "edge", "parent", "values")

    def __init__(self, edge: Key, parent: _Node[Value] | None) -> None:
        self.edge = edge
        self.parent = parent
        self.children: dict[int, _Node[Value]] = {}
        self.values: list[Value] = []


class _Place(NamedTuple, Generic[Value]):
    """Where a key leaves the tree: `length` of its ids are known, the last `into` of them the
    first ones of `node`'s edge."""

    node: _Node[Value]
    into: int
    length: int


class RadixTree(Generic[Value]):
    """Several values may stand under one key. Values are compared by equality."""

    def __init__(self) -> None:
        self._root: _Node[Value] = _Node((), None)

    def insert(self, key: Key, value: Value) -> None:
        """Put `value` under `key`, behind those that are there."""
        node, into, length = self._find(key)
        if into < len(node.edge):
            node = _split(node, into)
        if length < len(key):
            child = _Node(key[length:], node)
            node.children[key[length]] = child
            node = child
        node.values.append(value)

    def remove(self, key: Key, value: Value) -> None:
        """Take `value`, which stands under `key`, out again."""
        node, into, length = self._find(key)
        assert length == len(key) and into == len(node.edge), "no value has this key"
        node.values.remove(value)
        _tidy(node)

    def longest(self, key: Key) -> tuple[int, Iterator[Value]]:
        """How many of `key`'s first ids are the first ids of another key, and the values of all
        keys that have so many in common with it, in no certain order."""
        node, _, length = self._find(key)
        return length, _values_below(node)

    def prefixes(self, key: Key) -> list[Value]:
        """The values whose keys are prefixes of `key` (or `key` itself)."""
        place = self._find(key)
        node: _Node[Value] | None = place.node
        if place.into < len(place.node.edge):
            node = place.node.parent
        found: list[Value] = []
        while node is not None:
            found += node.values
            node = node.parent
        return found

    def _find(self, key: Key) -> _Place[Value]:
        node, into, length = self._root, 0, 0
        while length < len(key) and into == len(node.edge):
            child = node.children.get(key[length])
            if child is None:
                break
            node, into = child, _common(child.edge, key[length : length + len(child.edge)])
            length += into
        return _Place(node, into, length)


def _common(one: Key, other: Key) -> int:
    """How many first ids are the same."""
    if one == other:  # at the speed of C
        return len(one)
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _split(node: _Node[Value], into: int) -> _Node[Value]:
    """A new node in the middle of `node`'s edge."""
    assert node.parent is not None
    upper: _Node[Value] = _Node(node.edge[:into], node.parent)
    node.parent.children[node.edge[0]] = upper
    node.edge, node.parent = node.edge[into:], upper
    upper.children[node.edge[0]] = node
    return upper


def _tidy(node: _Node[Value]) -> None:
    """Remove `node` if it is of no use any more."""
    if node.values or node.parent is None:
        return
    if not node.children:
        del node.parent.children[node.edge[0]]
        _tidy(node.parent)
    elif len(node.children) == 1:
        (child,) = node.children.values()
        child.edge, child.parent = node.edge + child.edge, node.parent
        node.parent.children[child.edge[0]] = child


def _values_below(node: _Node[Value]) -> Iterator[Value]:
    nodes = [node]
    while nodes:
        node = nodes.pop()
        yield from node.values
        nodes += node.children.values()
