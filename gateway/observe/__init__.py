"""What the gateway tells about each request: metrics and the access log."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson
from mypy_extensions import mypyc_attr

from gateway.observe.access_log import AccessLog
from gateway.observe.lag import LoopLag
from gateway.observe.metrics import OTHER, Counter, Histogram, Metrics

if TYPE_CHECKING:
    from gateway.request import Request
    from gateway.store import Redis

__all__ = ["AccessLog", "LoopLag", "Metrics", "Observer", "watch_process", "watch_redis"]

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"})
RESIDENT: Final = Path("/proc/self/statm")
NO_ROUTE: Final = "-"
MAX_CACHED: Final = 2000
# What follows the whole milliseconds: to format a number takes longer than the rest of a line.
THOUSANDTHS: Final = tuple([f'.{number:03d},"upstream_ms":' for number in range(1000)])
# Characters, as they stand in the line: with all that goes with them they fit in `MAX_LINE`.
MAX_PATH: Final = 2800
CUT_PATH: Final = 400
MAX_KNOWN_PATH: Final = 256
MAX_ID: Final = 128
CUT_OTHER: Final = 64

LINK_GAUGES: Final = {
    "up": "Links that are up.",
    "stalled": "Links that are up and do not answer in time.",
    "waiting": "Replies the links are waiting for.",
}
LINK_COUNTERS: Final = {
    "connects": "Connections made.",
    "timeouts": "Replies that did not come in time.",
    "writes": "Writes to Redis: one per loop tick with questions, or one for those of each 24 requests.",
    "commands": "Commands sent.",
}
MIRROR_COUNTERS: Final = {
    "hits": "Reads the mirrors answered.",
    "misses": "Reads the mirrors could not answer.",
    "evictions": "Entries dropped for lack of room.",
    "invalidations": "Keys Redis has withdrawn.",
}


Series = tuple[Counter, Histogram, Histogram, str]
"""What a request is counted in, and how its line goes on from there."""


class Note:
    """What is the same for all requests with one head from one client.

    Attributes:
        text: the members of their lines that tell what was asked by whom.
        series: what they are counted in, and how their lines go on, by status and outcome.
    """

    __slots__ = ("client", "series", "text")

    def __init__(self, request: Request) -> None:
        self.client = request.client
        known = len(request.path) <= MAX_KNOWN_PATH
        self.text = (about if known else new_about)(request.client, request.method, request.path, request.route.name)
        self.series: dict[tuple[int, str], Series] = {}


@mypyc_attr(allow_interpreted_subclasses=True)
class Observer:
    """Takes one note of each request.

    Args:
        metrics: where to count.
        access_log: where lines go; None writes none.
        clock: seconds, the same clock as `Request.started`. Not uvloop's `loop.time()`: that one stands still
            during a tick and counts whole milliseconds, while an answer from memory takes some microseconds.
        wall: seconds since the epoch.

    A line's fields: `time` (when the answer was finished; ISO 8601, UTC, milliseconds), `client`, `method`, `path`
    (without the query, which may carry secrets), `route`, `status`, `outcome`, `bytes` (head and body), `ms` (from
    the request's complete head to the answer's last byte), `upstream_ms` (null where the upstream was not asked),
    `redis_trips`, `request_id`.
    """

    def __init__(
        self,
        metrics: Metrics,
        access_log: AccessLog | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.metrics = metrics
        self.access_log = access_log
        self._clock = clock
        self._wall = wall
        self._series: dict[tuple[str, int, str, str], Series] = {}
        self._trips = metrics.counter(
            "gateway_redis_round_trips_total", "Redis round trips that requests have waited for."
        )
        metrics.ratio(
            "gateway_redis_round_trips_per_request",
            "Redis round trips per request, since the start.",
            lambda: (self._trips.value, self.requests),
        )
        # The wall clock is read once per second; in between, the request's own clock tells the milliseconds.
        self._second = ""
        self._second_starts = 0.0
        self._second_ends = float("-inf")
        self._millisecond = -1
        self._stamp = ""

    def __repr__(self) -> str:
        return f"<Observer {self.requests:.0f} requests>"

    @property
    def requests(self) -> float:
        """How many requests were answered."""
        return self.metrics.total("gateway_requests_total")

    def record(self, request: Request, status: int, sent: int, outcome: str) -> None:
        """Once per answered request, when its last byte was handed to the transport.

        Args:
            sent: bytes of the answer, head and body.
            outcome: a word of `gateway.response.OUTCOMES`.
        """
        now = self._clock()
        seconds = now - request.started
        note: Note | None = request.notes.get(self)
        if note is None or note.client != request.client:
            note = request.notes[self] = Note(request)
        series = note.series.get((status, outcome))
        if series is None:
            series = self._find(request.route.name, status, outcome, request.method)
            series = note.series[status, outcome] = (*series[:3], note.text + series[3])
        requests, duration, upstream, told = series
        requests.value += 1
        duration.observe(seconds)
        upstream_seconds = request.upstream_seconds
        if upstream_seconds is not None:
            upstream.observe(upstream_seconds)
        trips = request.trips
        if trips:
            self._trips.value += trips
        if self.access_log is not None:
            took = int(seconds * 1e6)
            waited = "null" if upstream_seconds is None else int(upstream_seconds * 1e6) / 1e3
            if now >= self._second_ends or int((now - self._second_starts) * 1000) != self._millisecond:
                self._next_millisecond(now)
            # Written by hand, from parts that are remembered: a third of the time of a dict and orjson.
            line = (
                f'{self._stamp}{told}{sent},"ms":{took // 1000}{THOUSANDTHS[took % 1000]}{waited}'
                f',"redis_trips":{trips},"request_id":{quoted(request.id, MAX_ID)}}}\n'
            )
            self.access_log.write(line.encode())

    def _next_millisecond(self, now: float) -> None:
        if now >= self._second_ends:
            self._next_second(now)
        self._millisecond = int((now - self._second_starts) * 1000)
        self._stamp = f'{{"time":"{self._second}.{self._millisecond:03d}Z",'

    def record_unparsed(self, client: str, status: int, outcome: str) -> None:
        """Once per answer to something that never became a request: malformed, too long or too slow HTTP."""
        self._find(NO_ROUTE, status, outcome, OTHER)[0].value += 1
        if self.access_log is not None:
            fields: dict[str, Any] = {
                "client": client,
                "method": None,
                "path": None,
                "route": NO_ROUTE,
                "status": status,
            }
            fields |= {"outcome": outcome, "bytes": 0, "ms": 0.0, "upstream_ms": None, "redis_trips": 0}
            line = orjson.dumps(fields | {"request_id": None}, option=orjson.OPT_APPEND_NEWLINE)
            self._next_millisecond(self._clock())
            self.access_log.write(self._stamp.encode() + line[1:])

    def _find(self, route: str, status: int, outcome: str, method: str) -> Series:
        # Clients may invent methods; they must not fill the cache or Prometheus.
        known = method if method in METHODS else OTHER
        key = (route, status, outcome, known)
        series = self._series.get(key)
        if series is None:
            series = (
                self.metrics.counter(
                    "gateway_requests_total",
                    "Requests answered.",
                    route=route,
                    status=str(status),
                    outcome=outcome,
                    method=known,
                ),
                self.metrics.histogram(
                    "gateway_request_seconds", "From a request's head to its answer's last byte.", route=route
                ),
                self.metrics.histogram(
                    "gateway_upstream_seconds", "Time spent waiting for the upstream's answer.", route=route
                ),
                f',"status":{status},"outcome":"{outcome}","bytes":',
            )
            if len(self._series) < MAX_CACHED:
                self._series[key] = series
        return series

    def _next_second(self, now: float) -> None:
        wall = self._wall()
        self._second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(wall))
        self._second_starts = now - wall % 1
        self._second_ends = self._second_starts + 1
        self._millisecond = -1


def quoted(text: str, size: int = CUT_OTHER) -> str:
    """A text of at most `size` characters as a JSON string; undecodable bytes as `\\udc80`."""
    if len(text) <= size and text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return orjson.dumps(text[:size].encode("utf-8", "backslashreplace").decode()).decode()


def new_about(client: str, method: str, path: str, route: str) -> str:
    """The members of a line that tell what was asked by whom."""
    shown = quoted(path, MAX_PATH)
    if len(shown.encode()) > MAX_PATH:
        shown = quoted(path, CUT_PATH)
    return f'"client":{quoted(client)},"method":{quoted(method)},"path":{shown},"route":{quoted(route)}'


about = lru_cache(MAX_CACHED)(new_about)


def watch_redis(metrics: Metrics, redis: Redis) -> None:
    """Show what the links and the mirror count by themselves."""
    shown: set[str] = set()

    def show_links() -> None:
        links = {link.name: link for link in redis.all_links}
        for label in shown - set(links):
            for name in LINK_GAUGES:
                metrics.forget(f"gateway_redis_{name}", link=label)
            for name in LINK_COUNTERS:
                metrics.forget(f"gateway_redis_{name}_total", link=label)
        for label in set(links) - shown:
            link = links[label]
            for name, text in LINK_GAUGES.items():
                metrics.gauge(f"gateway_redis_{name}", text, partial(getattr, link, name), link=label)
            for name, text in LINK_COUNTERS.items():
                metrics.counter_of(f"gateway_redis_{name}_total", text, partial(getattr, link, name), link=label)
        shown.clear()
        shown.update(links)

    show_links()
    redis.watch_links(show_links)
    mirror = redis.mirror
    metrics.gauge("gateway_mirror_entries", "Entries the mirrors hold.", partial(len, mirror))
    metrics.gauge("gateway_mirror_bytes", "Bytes the mirrors hold.", partial(getattr, mirror, "bytes"))
    for name, text in MIRROR_COUNTERS.items():
        metrics.counter_of(f"gateway_mirror_{name}_total", text, partial(getattr, mirror, name))


def watch_process(metrics: Metrics) -> None:
    """Show what this process uses of the machine."""
    metrics.counter_of("gateway_cpu_seconds_total", "Processor time of the workers.", time.process_time)
    if RESIDENT.exists():
        metrics.gauge("gateway_resident_bytes", "Memory of the workers.", resident_bytes)


def resident_bytes() -> int:
    """What of this process is in memory; Linux."""
    return int(RESIDENT.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
