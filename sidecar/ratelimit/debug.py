"""What the reference's debug port shows: the limits that are loaded, and the statistics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.core.descriptors import DescriptorLimit, RateLimitConfig
    from sidecar.edges.metrics import Metrics

_STATISTIC: Final = str.maketrans(":|", "__")
"""The reference replaces what statsd would misread."""

ENDPOINTS: Final[Mapping[str, str]] = {
    "/livez": "whether the process turns",
    "/metrics": "all metrics, for Prometheus",
    "/policy": "the settings in use, as a policy document",
    "/readyz": "whether each part is ready",
    "/rlconfig": "print out the currently loaded configuration for debugging",
    "/stats": "the limits' statistics, under the reference's names",
}


def index() -> str:
    """What the port has, one line each."""
    return "".join(f"{path}: {what}\n" for path, what in ENDPOINTS.items())


def rlconfig(config: RateLimitConfig) -> str:
    """One line for each limit, as the reference prints them, in the files' order."""
    return "".join(_line(limit) for domain in config.domains.values() for limit in domain.limits)


def _line(limit: DescriptorLimit) -> str:
    unit = limit.unit.name if limit.unit is not None else "UNKNOWN"
    requests = limit.limit.requests if limit.limit is not None else 0
    return (
        f"{limit.stats.domain}.{limit.stats.limit}: unit={unit} requests_per_unit={requests}, "
        f"shadow_mode: {_go(limit.shadow_mode)}, quota_mode: {_go(limit.quota_mode)}\n"
    )


def _go(boolean: bool) -> str:
    return str(boolean).lower()


def stats(config: RateLimitConfig, metrics: Metrics) -> str:
    """Each statistic as `name: value`, under the reference's names; then Sidecar's own counters and gauges."""
    return "\n".join([*_limit_stats(config), *_own(metrics), ""])


def _limit_stats(config: RateLimitConfig) -> Iterator[str]:
    for found in config.stats.values():
        path = f"{found.domain}.{found.limit}".translate(_STATISTIC)
        for name, value in found.outcomes().items():
            yield f"ratelimit.service.rate_limit.{path}.{name}: {value}"


def _own(metrics: Metrics) -> Iterator[str]:
    for sample in metrics.samples():
        if isinstance(sample.value, int | float):
            labels = ".".join(("", *sample.labels)).translate(_STATISTIC)
            yield f"{sample.name}{labels}: {sample.value:g}"
