"""What is told of one request."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.observe import Observer
from gateway.observe.access_log import MAX_LINE, AccessLog
from gateway.observe.metrics import Metrics
from gateway.request import Request
from tests.requests import bare_request


class Lines(AccessLog):
    """Where the log's lines go in these tests."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def write(self, line: bytes) -> None:
        self.lines.append(line)


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def request(route: str = "users", **known: Any) -> Request:
    named = SimpleNamespace(name=route)
    return bare_request(**{"path": "/users/42", "id": "n-1", "started": 100.0, "trips": 1, "route": named, **known})


def observer(now: float = 100.0, wall: float = 1_763_721_600.25) -> tuple[Observer, Lines, Clock, Clock]:
    lines, clock, wall_clock = Lines(), Clock(now), Clock(wall)
    return Observer(Metrics(), lines, clock=clock, wall=wall_clock), lines, clock, wall_clock


def values(metrics: Metrics, name: str) -> dict[tuple[str, ...], Any]:
    return {tuple(labels): value for labels, value in metrics.snapshot()[name]["series"]}


def test_a_line_tells_all_of_a_request_and_nothing_secret() -> None:
    watcher, lines, clock, _ = observer()
    clock.now = 100.0125
    watcher.record(request(query="token=secret", upstream_seconds=0.0109879), 200, 1024, "miss")
    (line,) = lines.lines
    assert line.endswith(b"}\n")
    assert json.loads(line) == {
        "time": "2025-11-21T10:40:00.250Z",
        "client": "192.0.2.1",
        "method": "GET",
        "path": "/users/42",
        "route": "users",
        "status": 200,
        "outcome": "miss",
        "bytes": 1024,
        "ms": 12.5,
        "upstream_ms": 10.987,
        "redis_trips": 1,
        "request_id": "n-1",
    }


@given(st.floats(1e9, 2e9), st.lists(st.floats(0, 3), max_size=20))
def test_the_time_of_a_line_is_the_wall_clocks_to_the_millisecond(start: float, steps: list[float]) -> None:
    watcher, lines, clock, wall = observer(now=5.0, wall=start)
    watcher.record(request(started=5.0), 200, 0, "hit")
    for step in steps:
        clock.now += step
        wall.now += step
        watcher.record(request(started=clock.now), 200, 0, "hit")
        told = datetime.fromisoformat(json.loads(lines.lines[-1])["time"])
        assert told.tzinfo == UTC
        assert abs(told.timestamp() - wall.now) <= 0.0011


def test_a_clock_that_was_set_is_followed_within_a_second() -> None:
    watcher, lines, clock, wall = observer()
    watcher.record(request(), 200, 0, "hit")
    clock.now, wall.now = 101.0, wall.now + 3600
    watcher.record(request(), 200, 0, "hit")
    assert json.loads(lines.lines[-1])["time"] == "2025-11-21T11:40:00.250Z"


@given(st.text(st.characters(codec=None), max_size=3000), st.text(max_size=200), st.text(max_size=200))
def test_any_value_gives_one_line_of_json_that_fits_a_pipe(path: str, client: str, request_id: str) -> None:
    watcher, lines, _, _ = observer()
    watcher.record(request(path=path, client=client, id=request_id), 200, 0, "pass")
    (line,) = lines.lines
    assert line.count(b"\n") == 1
    assert len(line) <= MAX_LINE
    told = json.loads(line)
    if len(path) < 300 and path.isascii():
        assert told["path"] == path


def test_undecodable_bytes_are_told_as_what_they_were() -> None:
    watcher, lines, _, _ = observer()
    watcher.record(request(path=b'/\xff"\n'.decode("utf-8", "surrogateescape")), 404, 0, "refused")
    assert json.loads(lines.lines[0])["path"] == '/\\udcff"\n'


def test_each_request_is_counted_under_its_route_status_outcome_and_method() -> None:
    watcher, _, clock, _ = observer()
    for status, outcome, trips in ((200, "hit", 0), (200, "hit", 1), (429, "refused", 1), (502, "failed", 2)):
        clock.now = 100.003
        watcher.record(request(trips=trips, upstream_seconds=0.002 if status == 502 else None), status, 0, outcome)
    metrics = watcher.metrics
    assert values(metrics, "gateway_requests_total") == {
        ("users", "200", "hit", "GET"): 2,
        ("users", "429", "refused", "GET"): 1,
        ("users", "502", "failed", "GET"): 1,
    }
    assert sum(values(metrics, "gateway_request_seconds")[("users",)]["counts"]) == 4
    assert sum(values(metrics, "gateway_upstream_seconds")[("users",)]["counts"]) == 1
    assert values(metrics, "gateway_redis_round_trips_per_request")[()] == (4, 4)
    assert watcher.requests == 4


def test_methods_that_clients_invent_do_not_become_series() -> None:
    watcher, lines, _, _ = observer()
    for number in range(10_000):
        watcher.record(request(method=f"M{number}"), 405, 0, "refused")
    assert values(watcher.metrics, "gateway_requests_total") == {("users", "405", "refused", "other"): 10_000}
    assert json.loads(lines.lines[-1])["method"] == "M9999"
    assert len(watcher._series) == 1


def test_what_never_became_a_request_is_told_too() -> None:
    watcher, lines, _, _ = observer()
    watcher.record_unparsed("192.0.2.9", 400, "refused")
    told = json.loads(lines.lines[0])
    assert (told["client"], told["status"], told["path"]) == ("192.0.2.9", 400, None)
    assert list(told) == list(json.loads(line_of_a_request()))
    assert values(watcher.metrics, "gateway_requests_total") == {("-", "400", "refused", "other"): 1}


def line_of_a_request() -> bytes:
    watcher, lines, _, _ = observer()
    watcher.record(request(), 200, 0, "hit")
    return lines.lines[0]
