"""Metrics: counted in plain integers on the loop, collected as samples, merged over workers, rendered for Prometheus.

Nothing on the hot path knows prometheus-client: each part keeps its own counters, a source reads them when a scrape
comes, and only exposition.py uses the library. Samples of several processes can be merged because they are plain
values.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

import sidecar
from sidecar.core.audit import NO_RULE, DecisionEvent, outcome_label
from sidecar.edges.log import STDERR
from sidecar.edges.metrics_table import DECISION_BOUNDS_US, ROWS, Merge

if TYPE_CHECKING:
    from collections.abc import Collection

US_PER_S: Final = 1_000_000

NO_DOMAIN: Final = "-"
"""Stands for a domain that the policy does not have: what a request says is no label."""


class Buckets(msgspec.Struct, frozen=True):
    """A histogram's observations per bucket (the last one unbounded) and their sum in microseconds."""

    counts: tuple[int, ...]
    sum_us: int


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One value of one metric of `METRICS`, its label values in the row's order."""

    name: str
    labels: tuple[str, ...]
    value: float | Buckets


Source: TypeAlias = Callable[[], Iterable[Sample]]
"""Reads a part's counters, when a scrape comes."""


class LatencyHistogram:
    """Counts latencies into the buckets of `DECISION_BOUNDS_US`; 0.2 us an observation."""

    __slots__ = ("_counts", "_sum_us")

    def __init__(self) -> None:
        self._counts = [0] * (len(DECISION_BOUNDS_US) + 1)
        self._sum_us = 0

    def observe(self, latency_us: int) -> None:
        """Count one."""
        self._counts[bisect_left(DECISION_BOUNDS_US, latency_us)] += 1
        self._sum_us += latency_us

    def buckets(self) -> Buckets:
        """The counts now."""
        return Buckets(tuple(self._counts), self._sum_us)


class DecisionMetrics:
    """Counts decisions by rule and reason, and their latency.

    The series are bounded: rules and limits come from the policy, reasons from a closed set, and `keep_rules` and
    `keep_limits` forget those that a new policy no longer has.
    """

    def __init__(self) -> None:
        self._allowed: dict[str, int] = {}
        self._refused: dict[tuple[str, str, str], int] = {}
        self._degraded: dict[str, int] = {}
        self._shadowed: dict[str, int] = {}
        self._latency = LatencyHistogram()

    def observe(self, *events: DecisionEvent) -> None:
        """Count decisions."""
        allowed, refused, degraded, shadowed = self._allowed, self._refused, self._degraded, self._shadowed
        for event in events:
            decision = event.decision
            rule = NO_RULE if decision.rule is None else decision.rule.name
            reason = decision.reason
            if reason is None:
                allowed[rule] = allowed.get(rule, 0) + 1
            else:
                key = (rule, outcome_label(decision), reason.value)
                refused[key] = refused.get(key, 0) + 1
            if decision.degraded:
                degraded[rule] = degraded.get(rule, 0) + 1
            for limit in decision.shadowed:
                shadowed[limit] = shadowed.get(limit, 0) + 1
            self._latency.observe(event.latency_us)

    def keep_rules(self, names: Collection[str]) -> None:
        """Forget the series of every rule that is not named here."""
        kept = {NO_RULE, *names}
        self._allowed = {rule: count for rule, count in self._allowed.items() if rule in kept}
        self._refused = {key: count for key, count in self._refused.items() if key[0] in kept}
        self._degraded = {rule: count for rule, count in self._degraded.items() if rule in kept}

    def keep_limits(self, names: Collection[str]) -> None:
        """Forget the series of every limit that is not named here."""
        self._shadowed = {limit: count for limit, count in self._shadowed.items() if limit in names}

    def samples(self) -> list[Sample]:
        """The counts now."""
        total = "sidecar_decisions_total"
        samples = [Sample(total, (rule, "allowed", "allowed"), count) for rule, count in self._allowed.items()]
        samples += [Sample(total, key, count) for key, count in self._refused.items()]
        samples += [
            Sample("sidecar_decisions_degraded_total", (rule,), count) for rule, count in self._degraded.items()
        ]
        samples += [Sample("sidecar_shadow_denials_total", (limit,), count) for limit, count in self._shadowed.items()]
        samples.append(Sample("sidecar_decision_latency_seconds", (), self._latency.buckets()))
        return samples


class RateLimitMetrics:
    """Counts calls of the rate limit service by domain and answer, and their latency.

    Domains come from the policy; `keep_domains` forgets those that a new policy no longer has.
    """

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str], int] = {}
        self._latency = LatencyHistogram()

    def observe(self, domain: str | None, answer: str, latency_us: int) -> None:
        """Count one call; `domain` None stands for one that is not configured."""
        key = (NO_DOMAIN if domain is None else domain, answer)
        self._answers[key] = self._answers.get(key, 0) + 1
        self._latency.observe(latency_us)

    def keep_domains(self, names: Collection[str]) -> None:
        """Forget the series of every domain that is not named here."""
        kept = {NO_DOMAIN, *names}
        self._answers = {key: count for key, count in self._answers.items() if key[0] in kept}

    def samples(self) -> list[Sample]:
        """The counts now."""
        total = "sidecar_ratelimit_requests_total"
        samples = [Sample(total, key, count) for key, count in self._answers.items()]
        samples.append(Sample("sidecar_ratelimit_latency_seconds", (), self._latency.buckets()))
        return samples


class Metrics:
    """All sources of one process."""

    def __init__(self, engine: str) -> None:
        self.decisions = DecisionMetrics()
        self.ratelimit = RateLimitMetrics()
        self._build = Sample("sidecar_build_info", (sidecar.__version__, platform.python_version(), engine), 1)
        self._sources: list[Source] = [self.decisions.samples, self.ratelimit.samples, self._process_samples]

    def add(self, source: Source) -> None:
        """Read this source too at every scrape."""
        self._sources.append(source)

    def samples(self) -> list[Sample]:
        """Everything, now."""
        return [sample for source in self._sources for sample in source()]

    def _process_samples(self) -> list[Sample]:
        from sidecar.edges.exposition import process_samples  # noqa: PLC0415 - see there

        return [self._build, Sample("sidecar_log_lines_dropped_total", (), STDERR.dropped), *process_samples()]


def encode_samples(samples: Sequence[Sample]) -> bytes:
    """For another process."""
    return msgspec.json.encode(samples)


def decode_samples(data: bytes) -> list[Sample]:
    """What `encode_samples` wrote.

    Raises:
        msgspec.DecodeError: It did not.
    """
    return msgspec.json.decode(data, type=list[Sample])


def merged(by_worker: Sequence[tuple[str, Sequence[Sample]]]) -> list[Sample]:
    """The samples of several processes as one, each metric as its row says; what has no row is left out."""
    values: dict[tuple[str, tuple[str, ...]], float | Buckets] = {}
    for worker, samples in by_worker:
        for sample in samples:
            row = ROWS.get(sample.name)
            if row is None:
                continue
            labels = (*sample.labels, worker) if row.merge is Merge.PER_WORKER else sample.labels
            key = (sample.name, labels)
            held = values.get(key)
            values[key] = sample.value if held is None else _combined(row.merge, held, sample.value)
    return [Sample(name, labels, value) for (name, labels), value in values.items()]


def _combined(merge: Merge, one: float | Buckets, other: float | Buckets) -> float | Buckets:
    if isinstance(one, Buckets) and isinstance(other, Buckets):
        return Buckets(tuple(a + b for a, b in zip(one.counts, other.counts, strict=True)), one.sum_us + other.sum_us)
    if isinstance(one, Buckets) or isinstance(other, Buckets):
        raise TypeError("a histogram cannot be merged with a number")
    match merge:
        case Merge.SUM:
            return one + other
        case Merge.MAX:
            return max(one, other)
        case Merge.MIN | Merge.PER_WORKER:
            return min(one, other)
