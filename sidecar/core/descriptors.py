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
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from sidecar.core.descriptor_stats import NEAR_LIMIT_RATIO, OVERRIDE, LimitStats, NamedStats, near_threshold
from sidecar.core.descriptor_tree import Level, Node
from sidecar.core.limits import (
    REQUESTS_MAX,
    US_PER_S,
    Algorithm,
    Limit,
    LimitOutcome,
    OnFailure,
    Source,
    counter_key,
)

DOMAIN_LABEL_CHARS_MAX: Final = 64
"""How much of a domain's name stays readable in its counter keys; the whole name is part of their hash."""

OVERRIDES_MAX: Final = 1024
"""How many different limits brought along by requests a domain keeps compiled; when full it starts over."""


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
    """One descriptor as written; an empty `value` stands for any. `metadata` is what JSON can say; never changed."""

    key: str
    value: str = ""
    rate_limit: RateLimitRule | None = None
    descriptors: tuple[DescriptorRule, ...] = ()
    shadow_mode: bool = False
    quota_mode: bool = False
    share_threshold: bool = False
    detailed_metric: bool = False
    value_to_metric: bool = False
    metadata: Mapping[str, Any] | None = None

    @property
    def composite(self) -> str:
        """`key_value`, or the key alone: the descriptor's name in errors and metrics."""
        return f"{self.key}_{self.value}" if self.value else self.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting:
    """How limits are counted; the reference's way unless it is said otherwise.

    Attributes:
        count_denied: None: with `fixed_window` alone, as the reference counts.
        burst: `gcra` only: what may be taken at once; 0: as much as the limit.
        hold_us: `concurrency` only: when a request that never ended stops to count; 0: after the limit's unit.
        lease: Hits that a process may take ahead for a hot key and grant by itself; 0: none.
    """

    algorithm: Algorithm = Algorithm.FIXED_WINDOW
    count_denied: bool | None = None
    burst: int = 0
    hold_us: int = 0
    lease: int = 0

    def limit(
        self, name: str, requests: int, window_us: int, *, shadow: bool = False, deny_cache: bool = False
    ) -> Limit:
        """A limit that is counted so.

        Raises:
            ValueError: There is no such limit.
        """
        fixed = self.algorithm is Algorithm.FIXED_WINDOW
        return Limit(
            name=name,
            requests=requests,
            window_us=window_us,
            algorithm=self.algorithm,
            count_denied=fixed if self.count_denied is None else self.count_denied,
            shadow=shadow,
            burst=self.burst if requests else 0,
            hold_us=self.hold_us,
            lease=self.lease,
            deny_cache=deny_cache,
        )


_AS_THE_REFERENCE_COUNTS: Final = Counting()


@dataclass(slots=True, eq=False, kw_only=True)
class DescriptorLimit:
    """What matching finds: a limit, ready to be charged.

    Attributes:
        limit: What is charged; None where the descriptor is `unlimited`.
        unit: Of the answer's `current_limit`.
        stats: What it has counted; but see `named_levels`.
        unit_multiplier: How many units the window has; 1 but for overrides in requests.
        near_threshold: Above this count a hit is near the limit.
        patterns: Where `share_threshold` is set, the entry's index and the pattern that stands for its value.
        named_levels: Where `detailed_metric` or `value_to_metric` is set: each level's part of the statistic's name,
            None where the request's value belongs into it.
        metadata: For the answer's dynamic metadata.
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
    named_levels: tuple[str | None, ...] = ()
    metadata: Mapping[str, Any] | None = None
    encoded: tuple[bytes, bytes] | None = None

    def count(self, stats: LimitStats, hits: int, outcome: LimitOutcome) -> None:
        """Add one outcome to the statistics; `outcome.used` includes these hits where they were counted."""
        stats.total_hits += hits
        if outcome.source is Source.UNASKED:
            return
        if not outcome.allowed:
            over = hits
            if outcome.source is Source.REMEMBERED:
                stats.over_limit_with_local_cache += hits
            elif outcome.limit.count_denied and outcome.used > outcome.limit.requests:
                over = self._over(stats, hits, outcome.used, outcome.limit.requests)
            stats.over_limit += over
            if self.shadow_mode:
                stats.shadow_mode += over
            return
        stats.within_limit += hits
        near = outcome.used - self.near_threshold
        if near > 0:
            stats.near_limit += near if near < hits else hits  # noqa: FURB136 - min() costs a call

    def _over(self, stats: LimitStats, hits: int, used: int, requests: int) -> int:
        """How many of these hits are beyond the limit; those before them that are near it are counted."""
        before = used - hits
        if before < requests:
            stats.near_limit += requests - max(before, self.near_threshold)
        return used - max(before, requests)


class Entry(Protocol):
    """One entry of a request's descriptor."""

    @property
    def key(self) -> str:
        """What is told apart, such as `remote_address`."""

    @property
    def value(self) -> str:
        """Which one this request has; may be empty."""


@dataclass(frozen=True, slots=True)
class HeaderNames:
    """Names of the response headers that tell a limit, what remains of it, and the seconds until it starts afresh."""

    limit: str = "RateLimit-Limit"
    remaining: str = "RateLimit-Remaining"
    reset: str = "RateLimit-Reset"


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitOptions:
    """What the reference takes from its environment, and what it does not have.

    Attributes:
        on_failure: What an answer is while the counters cannot be read.
        shadow_mode: No answer as a whole is OVER_LIMIT; statuses are as ever.
        quota_mode: Every limit is in quota mode.
        near_limit_ratio: From this share of a limit on, its hits count as near.
        response_headers: Headers that answers carry.
        shadow_header: Name of a response header that lists the limits in shadow that would have refused.
        response_dynamic_metadata: Answers carry what was asked, and the metadata of what passed.
        merge_domains: Several files may have the same domain.
        deny_cache: A process may remember which counters are exhausted; Redis then does not count what it refuses.
        counting: Of limits that `algorithms` says nothing of.
        algorithms: Counting by `domain` or `domain/path`, for all limits at the path and below; the longest counts.
    """

    on_failure: OnFailure = OnFailure.ERROR
    shadow_mode: bool = False
    quota_mode: bool = False
    near_limit_ratio: float = NEAR_LIMIT_RATIO
    response_headers: HeaderNames | None = None
    shadow_header: str | None = None
    response_dynamic_metadata: bool = False
    merge_domains: bool = False
    deny_cache: bool = False
    counting: Counting = _AS_THE_REFERENCE_COUNTS
    algorithms: Mapping[str, Counting] = field(default_factory=dict)


_AS_THE_REFERENCE: Final = RateLimitOptions()


class Domain:
    """One domain's tree.

    Args:
        name: As requests name it.
        descriptors: In the files' order.
        options: Of the whole service.

    Attributes:
        key_label: The readable part of its counter keys: `rl/<name>:`, where what is not a letter, digit, `.`
            or `-` reads `_`. No limit of a policy can have a name with a slash, so the two never share a counter.
        limits: All limits of the tree, in the files' order.
        override_stats: What limits given in requests have counted, together.
        named_stats: What limits with `detailed_metric` or `value_to_metric` have counted.
        replaces: Some limit replaces others.
        algorithms_used: The keys of `options.algorithms` that name a place of this tree.
        asked: What the adapter to the wire remembers of the descriptors that it has seen.

    Raises:
        ValueError: A limit cannot be counted as `options.algorithms` say.
    """

    __slots__ = (
        "_overrides",
        "_root",
        "algorithms_used",
        "asked",
        "key_label",
        "limits",
        "name",
        "named_stats",
        "options",
        "override_stats",
        "replaces",
    )

    def __init__(
        self, name: str, descriptors: Sequence[DescriptorRule], options: RateLimitOptions = _AS_THE_REFERENCE
    ) -> None:
        self.name = name
        self.options = options
        self.key_label = b"rl/%b:" % re.sub(r"[^A-Za-z0-9.-]", "_", name)[:DOMAIN_LABEL_CHARS_MAX].encode("ascii")
        self.limits: list[DescriptorLimit] = []
        self.override_stats = LimitStats(name, OVERRIDE)
        self.named_stats = NamedStats(name, {})
        self.algorithms_used: set[str] = set()
        self.asked: dict[bytes, Any] = {}
        self._overrides: dict[tuple[int, Unit, int], DescriptorLimit] = {}
        self._root = self._compile(descriptors, _Place(self._counting("", self.options.counting)))
        self.replaces = any(limit.replaces for limit in self.limits)

    def find(self, entries: Iterable[Entry]) -> DescriptorLimit | None:
        """The limit that applies to a descriptor, or None."""
        level: Level[DescriptorLimit] | None = self._root
        node: Node[DescriptorLimit] | None = None
        for entry in entries:
            if level is None:
                return None
            node = level.find(entry.key, entry.value)
            if node is None:
                return None
            level = node.children
        return node.carries if node is not None else None

    def override(self, requests: int, unit: Unit, unit_multiplier: int = 1) -> DescriptorLimit:
        """A limit that a request brought along.

        Raises:
            ValueError: The window is longer than WINDOW_US_MAX, or the number is not one of requests.
        """
        given = requests, unit, unit_multiplier
        limit = self._overrides.get(given)
        if limit is None:
            counting = self._counting("", self.options.counting)
            rule = DescriptorRule(key="", rate_limit=RateLimitRule(unit=unit, requests_per_unit=requests))
            limit = self._limit(rule, self.override_stats, counting, unit_multiplier)
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

    def stats_of(self, limit: DescriptorLimit, entries: Iterable[Entry]) -> LimitStats:
        """Where a descriptor's hits are counted."""
        if not limit.named_levels:
            return limit.stats
        named = zip(limit.named_levels, entries, strict=True)
        return self.named_stats.get(
            ".".join(_runtime_name(entry) if fixed is None else fixed for fixed, entry in named)
        )

    def _compile(self, rules: Sequence[DescriptorRule], above: _Place) -> Level[DescriptorLimit] | None:
        nodes: list[tuple[DescriptorRule, Node[DescriptorLimit]]] = []
        for order, rule in enumerate(rules):
            here = above.below(rule)
            here.counting = self._counting(here.path, above.counting)
            limit = None
            if rule.rate_limit is not None:
                limit = self._limit(rule, LimitStats(self.name, here.path), here.counting)
                limit.patterns = here.patterns
                limit.named_levels = here.named_levels(rule)
                self.limits.append(limit)
            nodes.append((rule, Node(order, limit, self._compile(rule.descriptors, here))))
        return Level(nodes) if nodes else None

    def _counting(self, path: str, default: Counting) -> Counting:
        name = f"{self.name}/{path}" if path else self.name
        found = self.options.algorithms.get(name)
        if found is None:
            return default
        self.algorithms_used.add(name)
        return found

    def _limit(
        self, rule: DescriptorRule, stats: LimitStats, counting: Counting, unit_multiplier: int = 1
    ) -> DescriptorLimit:
        written, options = rule.rate_limit, self.options
        if written is None:
            raise AssertionError("the rule has a limit")
        quota_mode = rule.quota_mode or options.quota_mode
        limit = None
        if written.unit is not None:
            # what does not refuse by itself must not keep the others of a decision from being counted
            shadow = rule.shadow_mode or quota_mode or options.shadow_mode
            window_us = written.unit.seconds * unit_multiplier * US_PER_S
            limit = counting.limit(
                f"{self.name}.{stats.limit}",
                written.requests_per_unit,
                window_us,
                shadow=shadow,
                deny_cache=options.deny_cache,
            )
        return DescriptorLimit(
            limit=limit,
            unit=written.unit,
            unit_multiplier=unit_multiplier,
            stats=stats,
            name=written.name,
            replaces=frozenset(written.replaces),
            shadow_mode=rule.shadow_mode,
            quota_mode=quota_mode,
            near_threshold=near_threshold(written.requests_per_unit, options.near_limit_ratio),
            metadata=rule.metadata or None,
        )


def _runtime_name(entry: Entry) -> str:
    return f"{entry.key}_{entry.value}" if entry.value else entry.key


@dataclass(slots=True)
class _Place:
    """Where in the tree compiling is."""

    counting: Counting
    rules: tuple[DescriptorRule, ...] = ()

    def below(self, rule: DescriptorRule) -> _Place:
        return replace(self, rules=(*self.rules, rule))

    @property
    def path(self) -> str:
        return ".".join(rule.composite for rule in self.rules)

    @property
    def patterns(self) -> tuple[tuple[int, str, str], ...]:
        shared = enumerate(self.rules)
        return tuple((depth, rule.key, rule.value) for depth, rule in shared if rule.share_threshold)

    def named_levels(self, leaf: DescriptorRule) -> tuple[str | None, ...]:
        """What `DescriptorLimit.named_levels` is: the leaf's `detailed_metric` counts for all levels."""
        levels = tuple(
            None if (leaf.detailed_metric or rule.value_to_metric) and not rule.share_threshold else rule.composite
            for rule in self.rules
        )
        return levels if None in levels else ()


@dataclass(slots=True, eq=False)
class RateLimitConfig:
    """All domains of the rate limit service.

    Attributes:
        domains: By name.
        options: Of the whole service.
        warnings: What is loaded and surely not meant so, for the log: one line each, with file and line.
        is_empty_on_purpose: No domain is what was configured: every request is within its limits.
        by_wire_name: The domains by their names' UTF-8.
        has_extras: An answer may be more than its statuses.
        stats: By domain and limit, for the collector of metrics; limits whose paths read the same share one.
    """

    domains: Mapping[str, Domain]
    options: RateLimitOptions = field(default_factory=RateLimitOptions)
    warnings: tuple[str, ...] = ()
    is_empty_on_purpose: bool = False
    by_wire_name: Mapping[bytes, Domain] = field(init=False)
    has_extras: bool = field(init=False)
    stats: dict[tuple[str, str], LimitStats] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.by_wire_name = {name.encode("utf-8", "surrogatepass"): domain for name, domain in self.domains.items()}
        options = self.options
        headers = options.response_headers is not None or options.shadow_header is not None
        self.has_extras = headers or options.shadow_mode or options.response_dynamic_metadata
        self._share_stats({})

    def continue_from(self, previous: RateLimitConfig) -> None:
        """Count on where `previous` counts, for the limits that are still there: called when a policy is replaced."""
        self.stats = {label: previous.stats.get(label, stats) for label, stats in self.stats.items()}
        self._share_stats(previous.domains)

    def _share_stats(self, previous: Mapping[str, Domain]) -> None:
        for name, domain in self.domains.items():
            domain.override_stats = self._shared(domain.override_stats)
            for limit in domain.limits:
                limit.stats = self._shared(limit.stats)
            seen = previous[name].named_stats.seen if name in previous else {}
            domain.named_stats = NamedStats(name, self.stats, seen)

    def _shared(self, stats: LimitStats) -> LimitStats:
        return self.stats.setdefault((stats.domain, stats.limit), stats)
