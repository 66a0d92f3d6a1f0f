"""Metrics in Prometheus' text format: the parent writes it, workers only count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.observe.metrics import Snapshot, merge

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class _Snapshots(Collector):
    """A merged snapshot as prometheus_client takes it."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        for name, family in self._snapshot.items():
            yield _metric(name, family)


def _metric(name: str, family: dict[str, Any]) -> Metric:
    labels = family["labels"]
    if family["kind"] == "counter":
        counter = CounterMetricFamily(name, family["help"], labels=labels)
        for values, value in family["series"]:
            counter.add_metric(values, value)
        return counter
    if family["kind"] == "histogram":
        histogram = HistogramMetricFamily(name, family["help"], labels=labels)
        bounds = [*(str(float(bound)) for bound in family["bounds"]), "+Inf"]
        for values, value in family["series"]:
            below = 0
            buckets = [(bound, below := below + count) for bound, count in zip(bounds, value["counts"], strict=True)]
            histogram.add_metric(values, buckets, value["sum"])
        return histogram
    gauge = GaugeMetricFamily(name, family["help"], labels=labels)
    for values, value in family["series"]:
        if family["kind"] == "ratio":
            over, under = value
            value = over / under if under else 0.0
        gauge.add_metric(values, value)
    return gauge


def render(snapshots: Iterable[Snapshot]) -> bytes:
    """All snapshots added up, in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshots(merge(snapshots)))
    return generate_latest(registry)
