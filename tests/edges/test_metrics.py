"""Metrics: counting, merging, and an exposition that Prometheus can read."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.core.audit import DecisionEvent
from sidecar.core.decision import Decision, DenyReason
from sidecar.core.rules import PrefixPath, RequestMatch, Rule
from sidecar.edges.exposition import render
from sidecar.edges.metrics import (
    Buckets,
    DecisionMetrics,
    LatencyHistogram,
    Metrics,
    Sample,
    decode_samples,
    encode_samples,
    merged,
)
from sidecar.edges.metrics_table import DECISION_BOUNDS_US, METRICS, Kind, Merge, bucket_bounds, markdown

ROOT = Path(__file__).parents[2]


def _rule(name):
    return Rule(name=name, match=RequestMatch(path=PrefixPath("/")), anonymous=True)


def _event(reason=None, rule="orders", latency_us=300, **fields):
    return DecisionEvent(0, latency_us, None, Decision(reason, _rule(rule) if rule else None, None, (), 1, **fields))


def _exposed(samples) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text, content_type = render(samples)
    assert content_type.startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def _example(row, value=1.0):
    if row.kind is Kind.HISTOGRAM:
        value = Buckets(tuple(range(len(bucket_bounds(row.name)) + 1)), 5_000_000)
    return Sample(row.name, tuple(f"a-{label}" for label in row.labels), value)


def test_decisions_are_counted_by_rule_and_reason():
    """Allowed, denied and left-to-Envoy decisions are told apart, also where no rule matched."""
    metrics = DecisionMetrics()
    for event in (
        _event(),
        _event(),
        _event(DenyReason.TOKEN_EXPIRED),
        _event(DenyReason.NO_RULE, rule=None),
        _event(DenyReason.LIMITS_UNAVAILABLE, as_error=True),
        _event(degraded=True, rule="local"),
    ):
        metrics.observe(event)
    counts = {s.labels: s.value for s in metrics.samples() if s.name == "sidecar_decisions_total"}
    assert counts == {
        ("orders", "allowed", "allowed"): 2,
        ("orders", "denied", "token_expired"): 1,
        ("-", "denied", "no_rule"): 1,
        ("orders", "error", "limits_unavailable"): 1,
        ("local", "allowed", "allowed"): 1,
    }
    assert [s.labels for s in metrics.samples() if s.name == "sidecar_decisions_degraded_total"] == [("local",)]


def test_series_of_rules_that_are_gone_are_forgotten():
    """However often the policy is replaced, only its rules have series."""
    metrics = DecisionMetrics()
    for number in range(100):
        name = f"rule-{number}"
        metrics.observe(_event(rule=name, degraded=True))
        metrics.observe(_event(DenyReason.ROLE_MISSING, rule=name))
        metrics.observe(_event(DenyReason.NO_RULE, rule=None))
        metrics.keep_rules([name])
    labels = [s.labels[0] for s in metrics.samples() if s.labels]
    assert sorted(labels) == ["-", "rule-99", "rule-99", "rule-99"]


def test_latency_bucket_bounds_are_inclusive():
    """A latency equal to a bound counts in its bucket, one microsecond more in the next (Prometheus' `le`)."""
    histogram = LatencyHistogram()
    histogram.observe(DECISION_BOUNDS_US[0])
    histogram.observe(DECISION_BOUNDS_US[0] + 1)
    histogram.observe(DECISION_BOUNDS_US[-1] + 1)
    counts = histogram.buckets().counts
    assert (counts[0], counts[1], counts[-1], sum(counts)) == (1, 1, 1, 3)
    assert histogram.buckets().sum_us == 2 * DECISION_BOUNDS_US[0] + DECISION_BOUNDS_US[-1] + 2


def test_every_metric_is_exposed_and_readable():
    """The exposition of every metric parses, with its type and help and the labels of its row, in both formats."""
    samples = [_example(row) for row in METRICS]
    text, _ = render(samples)
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    for row in METRICS:
        family = families[row.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (row.kind, row.help)
        assert {*family.samples[0].labels} - {"le"} == {*row.labels}
    assert len(families) == len(METRICS)
    openmetrics, content_type = render(samples, "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert openmetrics.endswith(b"# EOF\n")


def test_metrics_without_values_are_declared():
    """A metric whose part does not run shows its type and help, and no made-up zero."""
    text, _ = render([])
    assert all(f"# TYPE {row.name}" in text.decode() for row in METRICS)
    assert _exposed([]) == {}


def test_documentation_is_up_to_date():
    """docs/metrics.md is what the table says."""
    assert (ROOT / "docs/metrics.md").read_text() == markdown(), (
        "python -m sidecar.edges.metrics_table > docs/metrics.md"
    )


def test_names_follow_the_conventions():
    """Counters end in _total, nothing else does, and names are unique."""
    assert all(row.name.endswith("_total") is (row.kind is Kind.COUNTER) for row in METRICS)
    assert len({row.name for row in METRICS}) == len(METRICS)
    with pytest.raises(ValueError, match="not a histogram"):
        bucket_bounds("sidecar_connections")


def test_histogram_is_cumulative():
    """Buckets accumulate up to the count, bounds and sum are in seconds."""
    counts = [0] * (len(DECISION_BOUNDS_US) + 1)
    counts[0], counts[3], counts[-1] = 5, 2, 1
    exposed = _exposed([Sample("sidecar_decision_latency_seconds", (), Buckets(tuple(counts), 1_500_000))])
    name = "sidecar_decision_latency_seconds"
    assert exposed[(f"{name}_bucket", (("le", "2.5e-05"),))] == 5
    assert exposed[(f"{name}_bucket", (("le", "0.0005"),))] == 7
    assert exposed[(f"{name}_bucket", (("le", "+Inf"),))] == 8
    assert exposed[(f"{name}_count", ())] == 8
    assert exposed[(f"{name}_sum", ())] == 1.5


def test_hostile_label_values_are_escaped():
    """Quotes, backslashes and newlines in a label cannot forge a line."""
    name = 'a"b\\c\nsidecar_connections 5'
    exposed = _exposed([Sample("sidecar_decisions_degraded_total", (name,), 1)])
    assert exposed == {("sidecar_decisions_degraded_total", (("rule", name),)): 1}


def test_workers_are_merged_as_each_row_says():
    """Sums, maxima and minima over workers; processes keep a series each; histograms add up."""
    one = [_example(row, 1.0) for row in METRICS]
    other = [_example(row, 3.0) for row in METRICS]
    together = {(s.name, s.labels): s.value for s in merged([("0", one), ("1", other)])}
    for row in METRICS:
        labels = tuple(f"a-{label}" for label in row.labels)
        if row.kind is Kind.HISTOGRAM:
            assert together[(row.name, labels)].sum_us == 10_000_000
        elif row.merge is Merge.PER_WORKER:
            assert (together[(row.name, (*labels, "0"))], together[(row.name, (*labels, "1"))]) == (1, 3)
        else:
            assert together[(row.name, labels)] == {Merge.SUM: 4, Merge.MAX: 3, Merge.MIN: 1}[row.merge]
    assert ("process_open_fds", (("worker", "1"),)) in _exposed(merged([("0", one), ("1", other)]))


def test_merging_keeps_series_that_only_one_worker_has():
    """A rule that one worker alone has seen is there; a metric of a newer worker that has no row here is left out."""
    one = [Sample("sidecar_decisions_total", ("a", "allowed", "allowed"), 1), Sample("sidecar_of_tomorrow", (), 1)]
    assert merged([("0", one), ("1", [])]) == one[:1]


def test_samples_cross_processes():
    """What one process encodes another reads the same."""
    samples = [_example(row) for row in METRICS]
    assert decode_samples(encode_samples(samples)) == samples


def test_a_process_tells_about_itself():
    """Build information, process metrics and added sources are in one list that can be exposed."""
    metrics = Metrics(engine="http2")
    metrics.add(lambda: [Sample("sidecar_connections", (), 7)])
    metrics.decisions.observe(_event())
    exposed = _exposed(metrics.samples())
    assert exposed[("sidecar_connections", ())] == 7
    assert exposed[("process_resident_memory_bytes", ())] > 1_000_000
    assert any(name == "sidecar_build_info" and dict(labels)["engine"] == "http2" for name, labels in exposed)


@pytest.mark.parametrize(
    "sample",
    [
        Sample("sidecar_connections", ("0",), 1),
        Sample("sidecar_decisions_total", ("rule",), 1),
        Sample("process_open_fds", ("0", "1"), 1),
    ],
)
def test_a_source_that_disagrees_with_the_table_is_an_error(sample):
    """Labels that the row does not have, or lacks, are a bug that shows, not a series that lies."""
    with pytest.raises(ValueError, match="has the labels"):
        render([sample])


def test_shadow_denials_are_counted_by_limit_and_forgotten_with_it():
    """However often the policy is replaced, only its limits have series."""
    metrics = DecisionMetrics()
    for number in range(100):
        event = _event()
        event.decision.shadowed = (f"limit-{number}", "kept")
        metrics.observe(event)
        metrics.keep_limits({f"limit-{number}", "kept"})
    counts = {s.labels: s.value for s in metrics.samples() if s.name == "sidecar_shadow_denials_total"}
    assert counts == {("limit-99",): 1, ("kept",): 100}
