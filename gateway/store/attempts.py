"""When a link tries to connect again, and what the log is told of that.

A server that accepts, answers, and closes at once (a proxy whose Redis is away, one that crashes again and again) is up
for a moment each time: so a connection that did not last counts as an attempt that came to nothing.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Final, Literal

logger = logging.getLogger("gateway.redis")

# A Redis that is now there, now not, or now slow, now not, is not told of each time.
COMPLAINT_PAUSE_SECONDS: Final = 10.0
# A connection that has lasted for so long was a good one.
LASTING_SECONDS: Final = 2.0


class Attempts:
    """The connections of one link, one after the other. Times are of any clock, in seconds.

    Args:
        name: of the link, for the log.
        base: the first pause is at most so long, each one after it at most twice as long as the one before.
        longest: no pause is longer. Once a connection has lasted, the next pause is of `base` again.
        draw: a random number between two.
    """

    def __init__(
        self, name: str, base: float, longest: float, draw: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._name = name
        self._base = min(base, longest)
        self._longest = longest
        self._draw = draw
        self._ceiling = self._base
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
            self._ceiling = self._base
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
        """How long to wait before the next one. With full jitter, so that a fleet does not come back in step."""
        pause = self._draw(0, self._ceiling)
        self._ceiling = min(self._longest, 2 * self._ceiling)
        return pause

    def _before(self) -> str:
        untold, self._untold = self._untold, 0
        return f" (and {untold} times before, soon after it was up)" if untold else ""
