"""When a link tries to connect again, and what the log is told of that.

A server that accepts, answers, and closes at once (a proxy whose Redis is away, one that crashes again and again) is up
for a moment each time: so a connection that did not last counts as an attempt that came to nothing.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Final, Literal

from gateway.seldom import COMPLAINT_PAUSE_SECONDS

logger = logging.getLogger("gateway.redis")

# A connection that has lasted for so long was a good one.
LASTING_SECONDS: Final = 2.0


Draw = Callable[[float, float], float]
"""A random number between two."""


def pause_after(failures: int, base: float, longest: float, draw: Draw = random.uniform) -> float:
    """How long to wait after so many failures in a row: up to twice as long each time, from up to `base` to up to
    `longest` seconds. With full jitter, so that a fleet does not come back in step.
    """
    return draw(0, min(longest, base * 2 ** min(failures, 16)))


class Attempts:
    """The connections of one link, one after the other. Times are of any clock, in seconds.

    Args:
        name: of the link, for the log.
        base: the first pause is at most so long, each one after it at most twice as long as the one before.
        longest: no pause is longer. Once a connection has lasted, the next pause is of `base` again.
    """

    def __init__(self, name: str, base: float, longest: float, draw: Draw = random.uniform) -> None:
        self._name = name
        self._base = base
        self._longest = longest
        self._draw = draw
        self._failures = 0
        self._since = 0.0
        self._told: Literal["up", "lost", "away"] = "up"  # the log's last word
        self._quiet_until = float("-inf")
        self._untold = 0

    def made(self, now: float, version: str) -> None:
        """There is a connection."""
        self._since = now
        level = logging.DEBUG if self._told == "up" else logging.INFO
        self._told = "up"
        logger.log(level, "redis: link %s is up (%s)", self._name, version)

    def lost(self, now: float, why: str) -> None:
        """It is gone."""
        if now - self._since >= LASTING_SECONDS:
            self._failures = 0
        elif now < self._quiet_until:
            self._untold += 1
            return
        self._quiet_until = now + COMPLAINT_PAUSE_SECONDS
        logger.error("redis: link %s is down: %s", self._name, why + self._before())
        self._told = "lost"

    def failed(self, now: float, why: str) -> None:
        """None could be made."""
        if self._told == "away" or (self._told == "up" and now < self._quiet_until):
            return
        if self._told == "up":
            self._quiet_until = now + COMPLAINT_PAUSE_SECONDS
        why += self._before()
        logger.error("redis: cannot connect (link %s): %s; trying again in the background", self._name, why)
        self._told = "away"

    def pause(self) -> float:
        """How long to wait before the next one."""
        pause = pause_after(self._failures, self._base, self._longest, self._draw)
        self._failures += 1
        return pause

    def _before(self) -> str:
        untold, self._untold = self._untold, 0
        return f" (and {untold} times before, soon after it was up)" if untold else ""
