"""Finding a descriptor among those of a level: exact values, patterns in the file's order, the bare key.

Exact values and patterns of the form `prefix*` are found without looking at every descriptor of a level; other
patterns are tried in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Generic, Protocol, TypeVar

WILDCARD: Final = "*"


class Named(Protocol):
    """What a level needs to know of a descriptor as written; an empty `value` stands for any."""

    @property
    def key(self) -> str:
        """What is told apart; a `*` within makes a pattern of `composite`."""

    @property
    def value(self) -> str:
        """Which one: exact, a pattern, or empty."""

    @property
    def composite(self) -> str:
        """`key_value`, or the key alone."""


Leaf = TypeVar("Leaf")


class Node(Generic[Leaf]):
    """A descriptor of the compiled tree: what it carries, and the level below it."""

    __slots__ = ("carries", "children", "order")

    def __init__(self, order: int, carries: Leaf | None, children: Level[Leaf] | None) -> None:
        self.order = order
        self.carries = carries
        self.children = children


class Level(Generic[Leaf]):
    """The descriptors that stand beside each other."""

    __slots__ = ("_composite_patterns", "_keys")

    def __init__(self, nodes: Sequence[tuple[Named, Node[Leaf]]]) -> None:
        by_key: dict[str, list[tuple[Named, Node[Leaf]]]] = {}
        for rule, node in nodes:
            by_key.setdefault(rule.key, []).append((rule, node))
        self._keys = {key: _Key(of_key) for key, of_key in by_key.items()}
        composite = [(rule.composite, node) for rule, node in nodes if WILDCARD in rule.key]
        self._composite_patterns = _Patterns(composite) if composite else None

    def find(self, key: str, value: str) -> Node[Leaf] | None:
        """The descriptor to take for one entry of a request: exact, else the first pattern, else the bare key."""
        of_key = self._keys.get(key)
        node: Node[Leaf] | None = None
        if of_key is not None:
            node = of_key.values.get(value)
            if node is not None:
                return node
            if of_key.patterns is not None:
                node = of_key.patterns.first(value)
        if self._composite_patterns is not None:
            other = self._composite_patterns.first(f"{key}_{value}")
            if other is not None and (node is None or other.order < node.order):
                node = other
        if node is None and of_key is not None:
            return of_key.any_value
        return node


class _Key(Generic[Leaf]):
    """All descriptors of one level that have the same key."""

    __slots__ = ("any_value", "patterns", "values")

    def __init__(self, nodes: Sequence[tuple[Named, Node[Leaf]]]) -> None:
        self.values = {rule.value: node for rule, node in nodes if rule.value}
        self.any_value = next((node for rule, node in nodes if not rule.value), None)
        patterns = [(rule.value, node) for rule, node in nodes if WILDCARD in rule.value and WILDCARD not in rule.key]
        self.patterns = _Patterns(patterns) if patterns else None


class _Patterns(Generic[Leaf]):
    """Patterns over one text; `first` finds the one that stands first in the file."""

    __slots__ = ("_others", "_prefixes")

    def __init__(self, patterns: Iterable[tuple[str, Node[Leaf]]]) -> None:
        by_length: dict[int, dict[str, Node[Leaf]]] = {}
        others: list[tuple[_Glob, Node[Leaf]]] = []
        for pattern, node in patterns:
            prefix = pattern[:-1]
            if pattern.endswith(WILDCARD) and WILDCARD not in prefix:
                by_length.setdefault(len(prefix), {})[prefix] = node
            else:
                others.append((_Glob(pattern), node))
        self._prefixes = tuple(by_length.items())
        self._others = tuple(others)

    def first(self, text: str) -> Node[Leaf] | None:
        """The first pattern's node that matches."""
        best: Node[Leaf] | None = None
        for length, nodes in self._prefixes:
            node = nodes.get(text[:length])
            if node is not None and (best is None or node.order < best.order):
                best = node
        for glob, node in self._others:
            if best is not None and best.order < node.order:
                break
            if glob.matches(text):
                return node
        return best


class _Glob:
    """A pattern with `*`, matched in time linear in the text for each part between two stars."""

    __slots__ = ("_first", "_fixed_chars", "_last", "_middle")

    def __init__(self, pattern: str) -> None:
        self._first, *middle, self._last = pattern.split(WILDCARD)
        self._middle = [part for part in middle if part]
        self._fixed_chars = len(pattern) - pattern.count(WILDCARD)

    def matches(self, text: str) -> bool:
        """Whether the whole text fits."""
        if len(text) < self._fixed_chars or not text.startswith(self._first) or not text.endswith(self._last):
            return False
        start = len(self._first)
        end = len(text) - len(self._last)
        for part in self._middle:
            start = text.find(part, start, end)
            if start < 0:
                return False
            start += len(part)
        return True
