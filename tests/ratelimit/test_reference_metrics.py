"""Metrics under the reference's names: as its built-in mapping makes them of its statistics."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from sidecar.core.descriptors import DescriptorRule, Domain, RateLimitConfig, RateLimitRule, Unit
from sidecar.edges.exposition import render
from sidecar.edges.metrics import Metrics
from sidecar.ratelimit.reference_metrics import families


def rule(key: str, *below: DescriptorRule) -> DescriptorRule:
    return DescriptorRule(
        key=key, rate_limit=RateLimitRule(unit=Unit.MINUTE, requests_per_unit=5), descriptors=tuple(below)
    )


def test_limits_are_counted_by_domain_and_two_keys() -> None:
    """One level has no key2; the third and deeper levels count with their second; calls and loads have their own."""
    domain = Domain("shop", [rule("a", rule("b", rule("c", rule("d")))), rule("e")])
    config = RateLimitConfig({"shop": domain})
    for path, hits in (("a", 1), ("a.b", 2), ("a.b.c", 3), ("a.b.c.d", 4), ("e", 5), ("(override)", 6)):
        config.stats["shop", path].total_hits = hits
    metrics = Metrics("http2")
    for answer in ("ok", "ok", "invalid", "error"):
        metrics.ratelimit.observe("shop", answer, 1000)
    samples = metrics.samples()
    text = render(samples, "", families(config, samples, loads=3, loads_refused=2))[0].decode()
    found = {
        (sample.name.removeprefix("ratelimit_service_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        if family.name.startswith("ratelimit_service_")
        for sample in family.samples
        if "bucket" not in sample.name
    }
    assert {key: value for key, value in found.items() if key[0] == "rate_limit_total_hits"} == {
        ("rate_limit_total_hits", "shop", "a"): 1,
        ("rate_limit_total_hits", "shop", "a", "b"): 2 + 3 + 4,
        ("rate_limit_total_hits", "shop", "e"): 5,
        ("rate_limit_total_hits", "shop", "(override)"): 6,
    }
    assert found["total_requests", "ShouldRateLimit"] == found["response_time_seconds_count", "ShouldRateLimit"] == 4
    assert found["should_rate_limit_error", "redis_error"] == found["should_rate_limit_error", "service_error"] == 1
    assert (found["config_load_success",], found["config_load_error",]) == (3, 2)
