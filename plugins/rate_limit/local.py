"""The limits in this process, for the time without Redis: the same two algorithms, with the same results.

What a worker has let pass it owes to Redis: `debt` tells it, until it is `settled`. The meters stay as they are, so
that one outage after the other gives nobody more than one.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Final, Literal

from plugins.rate_limit.limits import Limit

Algorithm = Literal["sliding_window", "token_bucket"]

# What a meter and its share of the dict take, about; a time in a window takes 8 bytes more.
METER_BYTES: Final = 400
TIME_BYTES: Final = 8


def microseconds() -> int:
    """A clock that never goes back."""
    return time.monotonic_ns() // 1000


class Meter(ABC):
    """One limit of one client. `room` is called first, and brings it up to `now`."""

    __slots__ = ("_owed", "limit")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self._owed = 0

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes, about."""

    @abstractmethod
    def room(self, now: int) -> int:
        """How many requests it would allow now."""

    @abstractmethod
    def take(self, now: int) -> None:
        """Count one."""

    @abstractmethod
    def wait(self, now: int) -> int:
        """Microseconds until there is room for one more than now."""

    @abstractmethod
    def debt(self, now: int) -> list[int]:
        """What Redis does not know of yet, and would still count: the ages of requests, or how many."""

    def settled(self) -> int:
        """Now it does; of how many more."""
        owed, self._owed = self._owed, 0
        return owed

    def owe(self, count: int) -> None:
        """Of so many it does not, after all."""
        self._owed += count


class SlidingWindow(Meter):
    """At most N requests in any period: the times of those that were counted."""

    __slots__ = ("_times",)

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self._times = array("q")

    @property
    def size(self) -> int:
        return METER_BYTES + TIME_BYTES * len(self._times)

    def room(self, now: int) -> int:
        times = self._times
        del times[: bisect_right(times, now - self.limit.period)]
        return max(0, self.limit.count - len(times))

    def take(self, now: int) -> None:
        self._times.append(now)
        self._owed += 1

    def wait(self, now: int) -> int:
        times = self._times
        if not times:
            return self.limit.period
        # The limit may have been higher before, when there were fewer workers.
        return times[max(0, len(times) - self.limit.count)] + self.limit.period - now

    def debt(self, now: int) -> list[int]:
        self.room(now)
        return [now - time for time in self._times[max(0, len(self._times) - self._owed) :]]


class TokenBucket(Meter):
    """Holds at most the capacity, gains N per period. A token is worth `period` units of level, as in the script."""

    __slots__ = ("_level", "_since")

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self._level = limit.capacity * limit.period
        self._since = 0

    @property
    def size(self) -> int:
        return METER_BYTES

    def room(self, now: int) -> int:
        limit = self.limit
        self._level = min(limit.capacity * limit.period, self._level + (now - self._since) * limit.count)
        self._since = now
        return self._level // limit.period

    def take(self, now: int) -> None:
        self._level -= self.limit.period
        self._owed += 1

    def wait(self, now: int) -> int:
        return -(-(self.limit.period - self._level % self.limit.period) // self.limit.count)

    def debt(self, now: int) -> list[int]:
        """What has been refilled since is forgiven."""
        self.room(now)
        missing = self.limit.capacity * self.limit.period - self._level
        return [min(self._owed, -(-missing // self.limit.period))]


METERS: Final[dict[Algorithm, Callable[[Limit], Meter]]] = {
    "sliding_window": SlidingWindow,
    "token_bucket": TokenBucket,
}


class LocalLimits:
    """All limits of one plugin, for each client.

    Args:
        clock: now, in microseconds.
        max_bytes: past it, the clients that asked longest ago are forgotten; their count begins anew.

    Attributes:
        owing: clients whose requests Redis does not know of yet.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        limits: Sequence[Limit],
        *,
        clock: Callable[[], int] = microseconds,
        max_bytes: int = 32 << 20,
    ) -> None:
        self._meter = METERS[algorithm]
        self._whole = tuple(limits)
        self._limits = list(limits)
        self._parts = 1
        self.owing: dict[str, None] = {}
        self._clock = clock
        self._max_bytes = max_bytes
        self._clients: dict[str, list[Meter]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        """How many clients are known."""
        return len(self._clients)

    def share(self, parts: int) -> None:
        """So many workers give away the limits together: each its part."""
        if parts == self._parts:
            return
        self._parts = parts
        self._limits = [limit.shared(parts) for limit in self._whole]
        for meters in self._clients.values():
            for meter, limit in zip(meters, self._limits, strict=True):
                meter.limit = limit

    def debt(self, who: str) -> list[list[int]]:
        """What a client who is `owing` owes, for each limit; see `Meter.debt`."""
        now, meters = self._clock(), self._clients[who]
        self.bytes -= size_of(meters)  # what has left its window goes
        debts = [meter.debt(now) for meter in meters]
        self.bytes += size_of(meters)
        return debts

    def settled(self, who: str) -> list[int]:
        """Redis knows of the client's requests now; of how many more than before, for each limit."""
        del self.owing[who]
        return [meter.settled() for meter in self._clients[who]]

    def owe(self, who: str, counts: Sequence[int]) -> None:
        """It does not, after all: what `settled` has told is owed again, if the client is still known."""
        meters = self._clients.get(who)
        if meters is not None:
            self.owing[who] = None
            for meter, count in zip(meters, counts, strict=True):
                meter.owe(count)

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
            self.owing[who] = None
        remaining, wait, number = min(
            (meter.room(now), -meter.wait(now), number) for number, meter in enumerate(meters, 1)
        )
        self._clients[who] = meters
        self.bytes += size_of(meters)
        while self.bytes > self._max_bytes and len(self._clients) > 1:
            oldest = next(iter(self._clients))
            self.bytes -= size_of(self._clients.pop(oldest))
            self.owing.pop(oldest, None)
        return [0 if refusing else 1, number, remaining, -wait, *refusing]


def size_of(meters: Sequence[Meter]) -> int:
    return sum(meter.size for meter in meters)
