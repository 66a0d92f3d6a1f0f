"""The limits in this process, for the time without Redis: the same two algorithms, with the same results."""

from __future__ import annotations

import time
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Final, Literal, Protocol

from plugins.rate_limit.limits import Limit

Algorithm = Literal["sliding_window", "token_bucket"]

# What a meter and its share of the dict take, about; a time in a window takes 8 bytes more.
METER_BYTES: Final = 400
TIME_BYTES: Final = 8


def microseconds() -> int:
    """A clock that never goes back."""
    return time.monotonic_ns() // 1000


class Meter(Protocol):
    """One limit of one client. `room` is called first, and brings it up to `now`."""

    @property
    def size(self) -> int:
        """Bytes, about."""

    def room(self, now: int) -> int:
        """How many requests it would allow now."""

    def take(self, now: int) -> None:
        """Count one."""

    def wait(self, now: int) -> int:
        """Microseconds until there is room for one more than now."""


class SlidingWindow:
    """At most N requests in any period: the times of those that were counted."""

    __slots__ = ("_limit", "_times")

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._times = array("q")

    @property
    def size(self) -> int:
        return METER_BYTES + TIME_BYTES * len(self._times)

    def room(self, now: int) -> int:
        times = self._times
        del times[: bisect_right(times, now - self._limit.period)]
        return self._limit.count - len(times)

    def take(self, now: int) -> None:
        self._times.append(now)

    def wait(self, now: int) -> int:
        return (self._times[0] if self._times else now) + self._limit.period - now


class TokenBucket:
    """Holds at most the capacity, gains N per period. A token is worth `period` units of level, as in the script."""

    __slots__ = ("_level", "_limit", "_since")

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._level = limit.capacity * limit.period
        self._since = 0

    @property
    def size(self) -> int:
        return METER_BYTES

    def room(self, now: int) -> int:
        limit = self._limit
        self._level = min(limit.capacity * limit.period, self._level + (now - self._since) * limit.count)
        self._since = now
        return self._level // limit.period

    def take(self, now: int) -> None:
        self._level -= self._limit.period

    def wait(self, now: int) -> int:
        return -(-(self._limit.period - self._level % self._limit.period) // self._limit.count)


METERS: Final[dict[Algorithm, Callable[[Limit], Meter]]] = {
    "sliding_window": SlidingWindow,
    "token_bucket": TokenBucket,
}


class LocalLimits:
    """All limits of one plugin, for each client.

    Args:
        share: the part of each limit that this process may give away.
        clock: now, in microseconds.
        max_bytes: past it, the clients that asked longest ago are forgotten; their count begins anew.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        limits: Sequence[Limit],
        *,
        share: float = 1.0,
        clock: Callable[[], int] = microseconds,
        max_bytes: int = 32 << 20,
    ) -> None:
        self._meter = METERS[algorithm]
        self._limits = [limit.shared(share) for limit in limits]
        self._clock = clock
        self._max_bytes = max_bytes
        self._clients: dict[str, list[Meter]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        """How many clients are known."""
        return len(self._clients)

    def take(self, who: str) -> list[int]:
        """Count a request, if all limits allow it; returns what the scripts return."""
        now = self._clock()
        meters = self._clients.pop(who, None)
        if meters is None:
            meters = [self._meter(limit) for limit in self._limits]
        else:
            self.bytes -= size_of(meters)
        refusing = [number for number, meter in enumerate(meters, 1) if meter.room(now) < 1]
        if not refusing:
            for meter in meters:
                meter.take(now)
        remaining, wait, number = min(
            (meter.room(now), -meter.wait(now), number) for number, meter in enumerate(meters, 1)
        )
        self._clients[who] = meters
        self.bytes += size_of(meters)
        while self.bytes > self._max_bytes and len(self._clients) > 1:
            self.bytes -= size_of(self._clients.pop(next(iter(self._clients))))
        return [0 if refusing else 1, number, remaining, -wait, *refusing]


def size_of(meters: Sequence[Meter]) -> int:
    return sum(meter.size for meter in meters)
