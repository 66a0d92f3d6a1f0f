"""Counting in each worker, adding up in the parent."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from gateway.observe.exposition import render
from gateway.observe.metrics import MAX_SERIES, Metrics, Snapshot, merge


def samples(*snapshots: Snapshot) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a Prometheus server would store."""
    families = text_string_to_metric_families(render(snapshots).decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def wire(metrics: Metrics) -> Snapshot:
    """A snapshot as it comes out of the channel."""
    snapshot: Snapshot = json.loads(json.dumps(metrics.snapshot()))
    return snapshot


def test_two_workers_are_added_up() -> None:
    workers = []
    for hits, misses, entries in ((3, 1, 10), (4, 0, 20)):
        metrics = Metrics()
        metrics.counter("requests_total", "Requests.", outcome="hit").value += hits
        if misses:
            metrics.counter("requests_total", "Requests.", outcome="miss").value += misses
        metrics.gauge("entries", "Entries.", lambda entries=entries: entries)
        metrics.ratio("trips_per_request", "Ratio.", lambda hits=hits: (hits, 2))
        metrics.histogram("seconds", "Time.", (0.1, 1.0)).observe(0.1 * hits)
        workers.append(wire(metrics))
    found = samples(*workers)
    assert found["requests_total", (("outcome", "hit"),)] == 7
    assert found["requests_total", (("outcome", "miss"),)] == 1
    assert found["entries", ()] == 30
    assert found["trips_per_request", ()] == 7 / 4
    assert found["seconds_count", ()] == 2
    assert found["seconds_sum", ()] == pytest.approx(0.7)


@given(st.lists(st.floats(0, 20), max_size=50), st.lists(st.floats(0, 20), max_size=50))
def test_a_histogram_counts_each_observation_in_all_buckets_that_hold_it(one: list[float], other: list[float]) -> None:
    bounds = (0.5, 1.0, 10.0)
    snapshots = []
    for values in (one, other):
        metrics = Metrics()
        histogram = metrics.histogram("seconds", "Time.", bounds)
        for value in values:
            histogram.observe(value)
        snapshots.append(wire(metrics))
    found = samples(*snapshots)
    for bound in bounds:
        assert found["seconds_bucket", (("le", str(bound)),)] == sum(v <= bound for v in one + other)
    assert found["seconds_bucket", (("le", "+Inf"),)] == found["seconds_count", ()] == len(one + other)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 1000)), max_size=5))
def test_adding_up_in_two_steps_is_adding_up_in_one(counts: list[dict[str, int]]) -> None:
    snapshots = []
    for count in counts:
        metrics = Metrics()
        for route, value in count.items():
            metrics.counter("requests_total", "Requests.", route=route).value += value
        snapshots.append(wire(metrics))
    steps: Snapshot = {}
    for snapshot in snapshots:
        steps = merge([steps, snapshot])
    assert samples(steps) == samples(*snapshots)


def test_workers_that_have_ended_count_on_but_hold_nothing_any_more() -> None:
    metrics = Metrics()
    metrics.counter("requests_total", "Requests.").value += 5
    metrics.gauge("entries", "Entries.", lambda: 7)
    retired = merge([wire(metrics)], gauges=False)
    assert samples(retired) == {("requests_total", ()): 5}
    assert samples(retired, wire(metrics)) == {("requests_total", ()): 10, ("entries", ()): 7}


def test_series_are_bounded() -> None:
    metrics = Metrics()
    for number in range(MAX_SERIES + 100):
        metrics.counter("requests_total", "Requests.", path=f"/{number}").value += 1
    found = samples(metrics.snapshot())
    assert len(found) == MAX_SERIES + 1
    assert found["requests_total", (("path", "other"),)] == 100


def test_a_name_means_one_thing() -> None:
    metrics = Metrics()
    metrics.counter("requests_total", "Requests.", route="a")
    with pytest.raises(ValueError, match=r"requests_total is a counter with labels \('route',\)"):
        metrics.counter("requests_total", "Requests.", user="a")
    with pytest.raises(ValueError, match="not a gauge"):
        metrics.gauge("requests_total", "Requests.", lambda: 1, route="a")


# Not what str.splitlines splits at: the parser of these tests takes such characters for line ends, unlike Prometheus.
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"])))
@example('a"b\\c\nd')
def test_any_label_value_survives_the_text_format(value: str) -> None:
    metrics = Metrics()
    metrics.counter("requests_total", "Requests.", route=value).value += 1
    assert samples(metrics.snapshot()) == {("requests_total", (("route", value),)): 1}
