"""What uses prometheus-client: the format that scrapers read, and what the system says of the process.

Imported when the first scrape comes, in a thread (worker_scrape.py): it takes 3 MiB and some 30 ms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder

from sidecar.edges.metrics import US_PER_S, Buckets, Sample
from sidecar.edges.metrics_table import METRICS, ROWS, Kind, Merge, bucket_bounds

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_process = ProcessCollector(registry=None)


def process_samples() -> list[Sample]:
    """Memory, CPU time, open files and the start of this process."""
    return [
        Sample(sample.name, (), sample.value)
        for family in _process.collect()
        for sample in family.samples
        if sample.name in ROWS
    ]


def render(samples: Iterable[Sample], accept: str = "", more: Sequence[Metric] = ()) -> tuple[bytes, str]:
    """The exposition of all metrics of `METRICS` and of `more`; its content type as negotiated by an Accept header."""
    by_name: dict[str, list[Sample]] = {row.name: [] for row in METRICS}
    for sample in samples:
        by_name[sample.name].append(sample)
    encode, content_type = choose_encoder(accept)
    return encode(_Collected([*(_family(name, held) for name, held in by_name.items()), *more])), content_type


class _Collected:
    """What prometheus-client takes for a registry."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _family(name: str, samples: list[Sample]) -> Metric:
    row = ROWS[name]
    labels = row.labels
    if row.merge is Merge.PER_WORKER and any(len(sample.labels) > len(labels) for sample in samples):
        labels = (*labels, "worker")
    if any(len(sample.labels) != len(labels) for sample in samples):
        raise ValueError(f"{name} has the labels {labels}")
    if row.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(name, row.help, labels=labels)
        for sample in samples:
            _add_buckets(histogram, sample)
        return histogram
    family: CounterMetricFamily | GaugeMetricFamily
    if row.kind is Kind.COUNTER:
        family = CounterMetricFamily(name.removesuffix("_total"), row.help, labels=labels)
    else:
        family = GaugeMetricFamily(name, row.help, labels=labels)
    for sample in samples:
        if isinstance(sample.value, Buckets):
            raise TypeError(f"{name} is no histogram")
        family.add_metric(sample.labels, sample.value)
    return family


def _add_buckets(family: HistogramMetricFamily, sample: Sample) -> None:
    if not isinstance(sample.value, Buckets):
        raise TypeError(f"{sample.name} is a histogram")
    bounds = [repr(bound / US_PER_S) for bound in bucket_bounds(sample.name)] + ["+Inf"]
    buckets = list(zip(bounds, accumulate(sample.value.counts), strict=True))
    family.add_metric(sample.labels, buckets, sum_value=sample.value.sum_us / US_PER_S)
