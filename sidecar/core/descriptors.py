"""The rate limit service's configuration, compiled: which limit applies to a request's descriptor.

A *domain* is a tree. A request's descriptor is a path of `key: value` entries, walked from the root, one level for
each entry. At a level the first of these that exists is taken, and the walk never turns back:

1. the descriptor with this key and exactly this value;
2. the first descriptor, in the file's order, whose pattern matches (`*` stands for any characters, also none);
3. the descriptor with this key and no value: every value that is seen has its own counter.

A limit applies only to a request with as many entries as the limit is deep. These are the semantics of
envoyproxy/ratelimit, with one difference: keys and values are compared apart, where it compares `key_value` as one
text (so that there `a` with `b_c` is `a_b` with `c`). A `*` within a *key* keeps its meaning: such a pattern is
matched against `key_value`.

Exact values and patterns of the form `prefix*` are found without looking at every descriptor of a level; other
patterns are tried in turn.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from sidecar.core.limits import REQUESTS_MAX, US_PER_S, Algorithm, Limit, OnFailure, counter_key

WILDCARD: Final = "*"

NEAR_LIMIT_RATIO: Final = 0.8
"""From this share of a limit on, its hits count as `near_limit` (the reference's NEAR_LIMIT_RATIO)."""

DOMAIN_LABEL_CHARS_MAX: Final = 64
"""How much of a domain's name stays readable in its counter keys; the whole name is part of their hash."""

OVERRIDES_MAX: Final = 1024
"""How many different limits brought along by requests a domain keeps compiled; when full it starts over."""


OVERRIDE: Final = "(override)"
"""Stands for all limits that requests brought along, in statistics."""


class Unit(enum.IntEnum):
    """The length of a limit's window; numbers as in RateLimitResponse.RateLimit.Unit (not in order of length)."""

    SECOND = 1
    MINUTE = 2
    HOUR = 3
    DAY = 4
    MONTH = 5
    YEAR = 6
    WEEK = 7

    @property
    def seconds(self) -> int:
        """The window's length; a month has 30 days and a year 365."""
        return _UNIT_SECONDS[self]


_UNIT_SECONDS: Final = {
    Unit.SECOND: 1,
    Unit.MINUTE: 60,
    Unit.HOUR: 3_600,
    Unit.DAY: 86_400,
    Unit.WEEK: 7 * 86_400,
    Unit.MONTH: 30 * 86_400,
    Unit.YEAR: 365 * 86_400,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitRule:
    """A `rate_limit:` as written. `unit` is None exactly where `unlimited` is true."""

    unit: Unit | None
    requests_per_unit: int = 0
    unlimited: bool = False
    name: str = ""
    replaces: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.unit is None) != self.unlimited:
            raise ValueError("a rate limit has a unit, or is unlimited")
        if not 0 <= self.requests_per_unit <= REQUESTS_MAX:
            raise ValueError(f"requests_per_unit must be 0 to {REQUESTS_MAX}, not {self.requests_per_unit}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DescriptorRule:
    """One descriptor as written; an empty `value` stands for any."""

    key: str
    value: str = ""
    rate_limit: RateLimitRule | None = None
    descriptors: tuple[DescriptorRule, ...] = ()
    shadow_mode: bool = False
    quota_mode: bool = False
    share_threshold: bool = False

    @property
    def composite(self) -> str:
        """`key_value`, or the key alone: the descriptor's name in errors and metrics."""
        return f"{self.key}_{self.value}" if self.value else self.key


@dataclass(slots=True, eq=False)
class LimitStats:
    """What one configured limit has counted, in hits (not requests), under the reference's names.

    `limit` is its path, `key_value.key_value`, made of the configuration alone and never of a request's values, so
    there are as many as there are limits.
    """

    domain: str
    limit: str
    total_hits: int = 0
    over_limit: int = 0
    near_limit: int = 0
    within_limit: int = 0
    shadow_mode: int = 0

    def outcomes(self) -> dict[str, int]:
        """The figures by name. They overlap: near hits may be within, shadow hits are over, all are in the total."""
        return {
            "total_hits": self.total_hits,
            "within_limit": self.within_limit,
            "near_limit": self.near_limit,
            "over_limit": self.over_limit,
            "shadow_mode": self.shadow_mode,
        }


@dataclass(slots=True, eq=False, kw_only=True)
class DescriptorLimit:
    """What matching finds: a limit, ready to be charged.

    Attributes:
        limit: What is charged; None where the descriptor is `unlimited`.
        unit: Of the answer's `current_limit`.
        unit_multiplier: How many units the window has; 1 but for overrides in requests.
        near_threshold: Above this count a hit is near the limit.
        patterns: Where `share_threshold` is set, the entry's index and the pattern that stands for its value.
        encoded: What the adapter to the wire keeps with the limit, so that it is encoded once.
    """

    limit: Limit | None
    unit: Unit | None
    stats: LimitStats
    unit_multiplier: int = 1
    name: str = ""
    replaces: frozenset[str] = frozenset()
    shadow_mode: bool = False
    quota_mode: bool = False
    near_threshold: int = 0
    patterns: tuple[tuple[int, str, str], ...] = ()
    encoded: tuple[bytes, bytes] | None = None

    def count(self, hits: int, used: int, *, allowed: bool) -> None:
        """Add one outcome to the statistics; `used` is the window's count including these hits."""
        stats = self.stats
        stats.total_hits += hits
        before = used - hits
        if allowed:
            stats.within_limit += hits
            if used > self.near_threshold:
                stats.near_limit += used - max(before, self.near_threshold)
            return
        requests = self.limit.requests if self.limit is not None else 0
        if used <= requests:  # refused by a part of the limit, which is what one process grants without Redis
            stats.over_limit += hits
        else:
            stats.over_limit += used - max(before, requests)
            if before < requests:
                stats.near_limit += requests - max(before, self.near_threshold)
        if self.shadow_mode:
            stats.shadow_mode += hits


class Entry(Protocol):
    """One entry of a request's descriptor."""

    @property
    def key(self) -> str:
        """What is told apart, such as `remote_address`."""

    @property
    def value(self) -> str:
        """Which one this request has; may be empty."""


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


class _Node:
    """A descriptor of the compiled tree."""

    __slots__ = ("children", "limit", "order")

    def __init__(self, order: int, limit: DescriptorLimit | None, children: _Level | None) -> None:
        self.order = order
        self.limit = limit
        self.children = children


class _Patterns:
    """Patterns over one text; `first` finds the one that stands first in the file."""

    __slots__ = ("_others", "_prefixes")

    def __init__(self, patterns: Iterable[tuple[str, _Node]]) -> None:
        by_length: dict[int, dict[str, _Node]] = {}
        others: list[tuple[_Glob, _Node]] = []
        for pattern, node in patterns:
            prefix = pattern[:-1]
            if pattern.endswith(WILDCARD) and WILDCARD not in prefix:
                by_length.setdefault(len(prefix), {})[prefix] = node
            else:
                others.append((_Glob(pattern), node))
        self._prefixes = tuple(by_length.items())
        self._others = tuple(others)

    def first(self, text: str) -> _Node | None:
        """The first pattern's node that matches."""
        best: _Node | None = None
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


class _Key:
    """All descriptors of one level that have the same key."""

    __slots__ = ("any_value", "patterns", "values")

    def __init__(self, nodes: Sequence[tuple[DescriptorRule, _Node]]) -> None:
        self.values = {rule.value: node for rule, node in nodes if rule.value}
        self.any_value = next((node for rule, node in nodes if not rule.value), None)
        patterns = [(rule.value, node) for rule, node in nodes if WILDCARD in rule.value and WILDCARD not in rule.key]
        self.patterns = _Patterns(patterns) if patterns else None


_NO_KEY: Final = _Key(())


class _Level:
    """The descriptors that stand beside each other."""

    __slots__ = ("_composite_patterns", "_keys")

    def __init__(self, nodes: Sequence[tuple[DescriptorRule, _Node]]) -> None:
        by_key: dict[str, list[tuple[DescriptorRule, _Node]]] = {}
        for rule, node in nodes:
            by_key.setdefault(rule.key, []).append((rule, node))
        self._keys = {key: _Key(of_key) for key, of_key in by_key.items()}
        composite = [(rule.composite, node) for rule, node in nodes if WILDCARD in rule.key]
        self._composite_patterns = _Patterns(composite) if composite else None

    def find(self, key: str, value: str) -> _Node | None:
        """The descriptor to take for one entry; the module's docstring has the order."""
        of_key = self._keys.get(key, _NO_KEY)
        node = of_key.values.get(value)
        if node is not None:
            return node
        if of_key.patterns is not None:
            node = of_key.patterns.first(value)
        if self._composite_patterns is not None:
            other = self._composite_patterns.first(f"{key}_{value}")
            if other is not None and (node is None or other.order < node.order):
                node = other
        return node if node is not None else of_key.any_value


class Domain:
    """One domain's tree.

    Attributes:
        name: As requests name it.
        key_label: The readable part of its counter keys: `rl/<name>:`, where what is not a letter, digit, `.`
            or `-` reads `_`. No limit of a policy can have a name with a slash, so the two never share a counter.
        limits: All limits of the tree, in the files' order.
        override_stats: What limits given in requests have counted, together.
    """

    __slots__ = ("_overrides", "_root", "key_label", "limits", "name", "override_stats")

    def __init__(self, name: str, descriptors: Sequence[DescriptorRule]) -> None:
        self.name = name
        self.key_label = b"rl/%b:" % re.sub(r"[^A-Za-z0-9.-]", "_", name)[:DOMAIN_LABEL_CHARS_MAX].encode("ascii")
        self.limits: list[DescriptorLimit] = []
        self.override_stats = LimitStats(name, OVERRIDE)
        self._overrides: dict[tuple[int, Unit, int], DescriptorLimit] = {}
        self._root = self._compile(descriptors, "", ())

    def find(self, entries: Iterable[Entry]) -> DescriptorLimit | None:
        """The limit that applies to a descriptor, or None."""
        level: _Level | None = self._root
        node: _Node | None = None
        for entry in entries:
            if level is None:
                return None
            node = level.find(entry.key, entry.value)
            if node is None:
                return None
            level = node.children
        return node.limit if node is not None else None

    def override(self, requests: int, unit: Unit, unit_multiplier: int = 1) -> DescriptorLimit:
        """A limit that a request brought along.

        Raises:
            ValueError: The window is longer than WINDOW_US_MAX, or the number is not one of requests.
        """
        given = requests, unit, unit_multiplier
        limit = self._overrides.get(given)
        if limit is None:
            limit = _descriptor_limit(requests, unit, self.override_stats, unit_multiplier)
            if len(self._overrides) >= OVERRIDES_MAX:
                self._overrides.clear()
            self._overrides[given] = limit
        return limit

    def counter_key(self, prefix: bytes, limit: DescriptorLimit, entries: Iterable[Entry]) -> bytes:
        """The counter of a descriptor: one for each domain and sequence of entries (and window: `Charge.storage_key`).

        Where `share_threshold` is set the pattern stands for the value; the absent part before it keeps it apart
        from a value that reads the same.
        """
        parts: list[str | None] = [self.name]
        if limit.patterns:
            patterns = {index: (None, key, value) for index, key, value in limit.patterns}
            for index, entry in enumerate(entries):
                parts += patterns.get(index) or (entry.key, entry.value)
        else:
            for entry in entries:
                parts += (entry.key, entry.value)
        return counter_key(prefix + self.key_label, parts)

    def _compile(
        self, rules: Sequence[DescriptorRule], parent: str, patterns: tuple[tuple[int, str, str], ...], depth: int = 0
    ) -> _Level | None:
        nodes: list[tuple[DescriptorRule, _Node]] = []
        for order, rule in enumerate(rules):
            path = f"{parent}.{rule.composite}" if parent else rule.composite
            shared = (*patterns, (depth, rule.key, rule.value)) if rule.share_threshold else patterns
            limit = _compile_limit(rule, LimitStats(self.name, path), shared)
            if limit is not None:
                self.limits.append(limit)
            nodes.append((rule, _Node(order, limit, self._compile(rule.descriptors, path, shared, depth + 1))))
        return _Level(nodes) if nodes else None


def _compile_limit(
    rule: DescriptorRule, stats: LimitStats, patterns: tuple[tuple[int, str, str], ...]
) -> DescriptorLimit | None:
    rate_limit = rule.rate_limit
    if rate_limit is None:
        return None
    if rate_limit.unit is None:
        return DescriptorLimit(
            limit=None, unit=None, stats=stats, name=rate_limit.name, replaces=frozenset(rate_limit.replaces)
        )
    compiled = _descriptor_limit(rate_limit.requests_per_unit, rate_limit.unit, stats)
    compiled.name = rate_limit.name
    compiled.replaces = frozenset(rate_limit.replaces)
    compiled.shadow_mode = rule.shadow_mode
    compiled.quota_mode = rule.quota_mode
    compiled.patterns = patterns
    return compiled


def _descriptor_limit(requests: int, unit: Unit, stats: LimitStats, unit_multiplier: int = 1) -> DescriptorLimit:
    limit = Limit(
        name=f"{stats.domain}.{stats.limit}",
        requests=requests,
        window_us=unit.seconds * unit_multiplier * US_PER_S,
        algorithm=Algorithm.FIXED_WINDOW,
        count_denied=True,
    )
    near = int(requests * NEAR_LIMIT_RATIO)
    return DescriptorLimit(limit=limit, unit=unit, unit_multiplier=unit_multiplier, stats=stats, near_threshold=near)


@dataclass(slots=True, eq=False)
class RateLimitConfig:
    """All domains of the rate limit service.

    Attributes:
        domains: By name.
        on_failure: What an answer is while the counters cannot be read.
        stats: By domain and limit, for the collector of metrics; limits whose paths read the same share one.
    """

    domains: Mapping[str, Domain]
    on_failure: OnFailure = OnFailure.ERROR
    stats: dict[tuple[str, str], LimitStats] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._share_stats()

    def continue_from(self, previous: RateLimitConfig) -> None:
        """Count on where `previous` counts, for the limits that are still there: called when a policy is replaced."""
        self.stats = {label: previous.stats.get(label, stats) for label, stats in self.stats.items()}
        self._share_stats()

    def _share_stats(self) -> None:
        for domain in self.domains.values():
            domain.override_stats = self._shared(domain.override_stats)
            for limit in domain.limits:
                limit.stats = self._shared(limit.stats)

    def _shared(self, stats: LimitStats) -> LimitStats:
        return self.stats.setdefault((stats.domain, stats.limit), stats)
