"""Limits as people write them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Final

SECOND: Final = 1_000_000
UNITS: Final = {"second": SECOND, "minute": 60 * SECOND, "hour": 3600 * SECOND, "day": 86400 * SECOND}
LONGEST: Final = 31 * UNITS["day"]

_LIMIT: Final = re.compile(
    r"(?P<count>[0-9]{1,9})\s*(?:/|\bper\b)\s*(?P<times>[0-9]{1,9})?\s*"
    r"(?P<unit>s|m|h|d|secs?|mins?|seconds?|minutes?|hours?|days?)",
    re.IGNORECASE,
)
_EXPECTED: Final = 'expected a limit such as "100/minute", "5/10s" or "1000 per 2 hours"'


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `count` requests in any `period`; a token bucket refills at that pace and holds `capacity`."""

    text: str
    """As it was written: the name of the policy that a refused client is told."""
    count: int
    period: int
    """In microseconds."""
    capacity: int

    def __str__(self) -> str:
        return self.text

    def shared(self, parts: int) -> Limit:
        """What one of so many independent counters may give away; at least one request."""
        return replace(self, count=max(1, self.count // parts), capacity=max(1, self.capacity // parts))


def parse_limit(value: Any) -> Limit:
    """Read `N/unit`, `N per unit`, `N/10s`, `N per 10 seconds`; units are seconds, minutes, hours and days.

    Raises:
        ValueError: it is not a limit; the text says what is expected.
    """
    match = _LIMIT.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(_EXPECTED)
    count = int(match["count"])
    unit = next(length for name, length in UNITS.items() if name[0] == match["unit"][0].lower())
    period = int(match["times"] or 1) * unit
    if not count:
        raise ValueError("a limit allows at least 1 request; to close a route, take its plugins and upstream away")
    if not 0 < period <= LONGEST:
        raise ValueError("a limit's period is between 1 second and 31 days")
    return Limit(match.string, count, period, count)
