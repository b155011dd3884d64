"""Metrics under the names that the reference shows to Prometheus with its built-in mapping, for dashboards that exist.

    ratelimit_service_rate_limit_{total_hits,over_limit,near_limit,within_limit,shadow_mode}{domain,key1[,key2]}
    ratelimit_service_total_requests{grpc_method}     ratelimit_service_response_time_seconds{grpc_method}
    ratelimit_service_should_rate_limit_error{err_type}     ratelimit_service_config_load_{success,error}

As there, a limit's path is cut at its dots: what is deeper than two levels is counted with its second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from sidecar.edges.metrics import Buckets, Sample
from sidecar.edges.metrics_table import bucket_bounds

if TYPE_CHECKING:
    from sidecar.core.descriptors import RateLimitConfig

PREFIX: Final = "ratelimit_service_"
STATISTICS: Final = ("total_hits", "over_limit", "near_limit", "within_limit", "shadow_mode")

_REQUESTS: Final = "sidecar_ratelimit_requests_total"
_LATENCY: Final = "sidecar_ratelimit_latency_seconds"
_METHOD: Final = {"grpc_method": "ShouldRateLimit"}
_US_PER_S: Final = 1_000_000


def families(config: RateLimitConfig, samples: Iterable[Sample], *, loads: int, loads_refused: int) -> Sequence[Metric]:
    """All of them.

    Args:
        config: The limits in use, which have counted.
        samples: Sidecar's own metrics, with those of the calls.
        loads: How often a configuration was accepted.
        loads_refused: How often one was refused.
    """
    return [
        *_limits(config),
        *_calls(samples),
        _plain("config_load_success", "Configurations that were accepted.", [({}, loads)]),
        _plain("config_load_error", "Configurations that were refused.", [({}, loads_refused)]),
    ]


def _limits(config: RateLimitConfig) -> Iterable[Metric]:
    counts: dict[str, Counter[tuple[str, ...]]] = {name: Counter() for name in STATISTICS}
    for stats in config.stats.values():
        path = tuple(f"{stats.domain}.{stats.limit}".split(".")[:3])
        outcomes = stats.outcomes()
        for name in STATISTICS:
            counts[name][path] += outcomes[name]
    for name, found in counts.items():
        values = [(dict(zip(("domain", "key1", "key2"), path, strict=False)), n) for path, n in found.items()]
        yield _plain(f"rate_limit_{name}", "Hits of a limit.", values)


def _calls(samples: Iterable[Sample]) -> Iterable[Metric]:
    answers = Counter[str]()
    for sample in samples:
        if isinstance(sample.value, Buckets):
            if sample.name == _LATENCY:
                yield _latency(sample.value)
        elif sample.name == _REQUESTS:
            answers[sample.labels[1]] += int(sample.value)
    yield _plain("total_requests", "Calls that were answered.", [(_METHOD, answers.total())])
    errors = (("redis_error", answers["error"]), ("service_error", answers["invalid"]))
    found = [({"err_type": kind}, count) for kind, count in errors]
    yield _plain("should_rate_limit_error", "Calls that ended in an error.", found)


def _latency(buckets: Buckets) -> Metric:
    family = HistogramMetricFamily(f"{PREFIX}response_time_seconds", "From a call to its answer.", labels=list(_METHOD))
    bounds = [repr(bound / _US_PER_S) for bound in bucket_bounds(_LATENCY)] + ["+Inf"]
    counted = list(zip(bounds, accumulate(buckets.counts), strict=True))
    family.add_metric(list(_METHOD.values()), counted, sum_value=buckets.sum_us / _US_PER_S)
    return family


def _plain(name: str, text: str, values: Sequence[tuple[dict[str, str], int]]) -> Metric:
    """A counter without the suffix that the library would add to its name."""
    metric = Metric(f"{PREFIX}{name}", text, "unknown")
    for labels, value in values:
        metric.add_sample(f"{PREFIX}{name}", labels, value)
    return metric
