"""Counters of one process, and their sum over all of them as Prometheus reads it.

Each worker counts by itself: a counter is an object with a `value`, and nobody but the worker's loop changes it, so
there is no lock. The parent asks the workers for their `snapshot()`, adds them up with `merge` and shows them
(`gateway.observe.exposition`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

MAX_SERIES: Final = 2000
"""Most label combinations of one metric; those past it are counted together, each label being `other`."""
OTHER: Final = "other"

SECONDS: Final[tuple[float, ...]] = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""Bounds of the duration histograms, in seconds: Prometheus' own, and three below for answers from memory."""

Snapshot = dict[str, dict[str, Any]]
"""Metric name -> its kind, help, label names, bounds, and series: a list of [label values, value]."""


class Counter:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def __repr__(self) -> str:
        return f"<Counter {self.value}>"

    def read(self) -> float:
        return self.value


class Histogram:
    """How many observations fell into which range."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def __repr__(self) -> str:
        return f"<Histogram {sum(self.counts)} observations, sum {self.sum:g}>"

    def observe(self, value: float) -> None:
        # A bound belongs to the range below it, as Prometheus' `le` says.
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def read(self) -> dict[str, Any]:
        return {"counts": list(self.counts), "sum": self.sum}


class _Function:
    """A number that somebody else keeps."""

    __slots__ = ("read",)

    def __init__(self, read: Callable[[], Any]) -> None:
        self.read = read


class _Family:
    """All series of one metric."""

    __slots__ = ("bounds", "help", "kind", "labels", "series")

    def __init__(self, kind: str, help_text: str, labels: tuple[str, ...], bounds: Sequence[float]) -> None:
        self.kind = kind
        self.help = help_text
        self.labels = labels
        self.bounds = tuple(bounds)
        self.series: dict[tuple[str, ...], Any] = {}


class Metrics:
    """The metrics of one process.

    Asking for a counter or histogram again gives the same object: keep it where the path is hot. All series of a
    metric have the same label names; values must come from a bounded set (routes, outcomes, never users or paths).
    """

    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}

    def __repr__(self) -> str:
        return f"<Metrics {len(self._families)} families>"

    def counter(self, name: str, help_text: str, /, **labels: str) -> Counter:
        """A counter; the hot path does `counter.value += 1`. Its name ends in `_total`."""
        made: Counter = self._series("counter", name, help_text, labels, Counter)
        return made

    def counter_of(self, name: str, help_text: str, function: Callable[[], float], /, **labels: str) -> None:
        """A counter that is read from elsewhere when somebody looks."""
        self._series("counter", name, help_text, labels, lambda: _Function(function))

    def gauge(self, name: str, help_text: str, function: Callable[[], float], /, **labels: str) -> None:
        """A number that goes up and down, read when somebody looks; over all workers it is added up."""
        self._series("gauge", name, help_text, labels, lambda: _Function(function))

    def ratio(self, name: str, help_text: str, function: Callable[[], tuple[float, float]], /, **labels: str) -> None:
        """A gauge that is one count over another; over all workers both are added up before dividing."""
        self._series("ratio", name, help_text, labels, lambda: _Function(function))

    def histogram(self, name: str, help_text: str, buckets: Sequence[float] = SECONDS, /, **labels: str) -> Histogram:
        """A histogram with these upper bounds, in rising order."""
        made: Histogram = self._series("histogram", name, help_text, labels, lambda: Histogram(buckets), buckets)
        return made

    def _series(
        self,
        kind: str,
        name: str,
        help_text: str,
        labels: dict[str, str],
        make: Callable[[], Any],
        bounds: Sequence[float] = (),
    ) -> Any:
        names = tuple(labels)
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = _Family(kind, help_text, names, bounds)
        if family.kind != kind or family.labels != names or family.bounds != tuple(bounds):
            raise ValueError(
                f"metric {name} is a {family.kind} with labels {family.labels}, not a {kind} with labels {names}"
            )
        values = tuple(labels.values())
        if values not in family.series and len(family.series) >= MAX_SERIES:
            values = (OTHER,) * len(names)
        series = family.series.get(values)
        if series is None:
            series = family.series[values] = make()
        return series

    def forget(self, name: str, /, **labels: str) -> None:
        """Show a series no more: what it counted is gone, as a server that has left a cluster."""
        family = self._families.get(name)
        if family is not None:
            family.series.pop(tuple(labels.values()), None)

    def total(self, name: str) -> float:
        """The sum over all series of a counter; 0 where there is none."""
        family = self._families.get(name)
        return sum(series.read() for series in family.series.values()) if family else 0

    def snapshot(self) -> Snapshot:
        """Everything as it is now, in types that JSON has."""
        return {
            name: {
                "kind": family.kind,
                "help": family.help,
                "labels": list(family.labels),
                "bounds": list(family.bounds),
                "series": [[list(values), series.read()] for values, series in family.series.items()],
            }
            for name, family in self._families.items()
        }


# -- adding up -----------------------------------------------------------------------------------


def merge(snapshots: Iterable[Snapshot], *, gauges: bool = True) -> Snapshot:
    """The sum of several processes' snapshots.

    Args:
        snapshots: of processes that run the same code; where two disagree about a metric, the first one is kept.
        gauges: False leaves out what is true only of a living process: the sum of those that have ended.
    """
    merged: Snapshot = {}
    sums: dict[str, dict[tuple[str, ...], Any]] = {}
    for snapshot in snapshots:
        for name, family in snapshot.items():
            if family["kind"] == "gauge" and not gauges:
                continue
            first = merged.setdefault(name, {**family, "series": []})
            if any(first[key] != family[key] for key in ("kind", "labels", "bounds")):
                continue
            series = sums.setdefault(name, {})
            for values, value in family["series"]:
                key = tuple(values)
                series[key] = _add(family["kind"], series[key], value) if key in series else value
    for name, series in sums.items():
        merged[name]["series"] = [[list(values), value] for values, value in series.items()]
    return merged


def _add(kind: str, one: Any, other: Any) -> Any:
    if kind == "histogram":
        counts = [a + b for a, b in zip(one["counts"], other["counts"], strict=True)]
        return {"counts": counts, "sum": one["sum"] + other["sum"]}
    if kind == "ratio":
        return [one[0] + other[0], one[1] + other[1]]
    return one + other
