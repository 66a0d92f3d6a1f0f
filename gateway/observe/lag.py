"""How long what is due waits for the loop: a timer looks how late it is.

Each answer waits so long too: a value far above the work of one turn means that something holds up the loop.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from gateway.observe.metrics import Metrics

# Forty times a second cost 0.02 % of a core under load, and 0.1 % idle.
INTERVAL: Final = 0.025
# The loop's timers count whole milliseconds: below two there is nothing to see.
BOUNDS: Final = (0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0)


class LoopLag:
    """Watches the running loop until `stop`.

    Args:
        metrics: gets the histogram `gateway_loop_lag_seconds`.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._loop = asyncio.get_running_loop()
        self._late = metrics.histogram(
            "gateway_loop_lag_seconds", "How late timers of the workers' loops are; 1 ms is the timers' own.", BOUNDS
        )
        self._next()

    def __repr__(self) -> str:
        return f"<LoopLag {self._late!r}>"

    def _next(self) -> None:
        # Not the loop's clock: uvloop's stands still during a turn.
        self._due = time.monotonic() + INTERVAL
        self._timer = self._loop.call_later(INTERVAL, self._look)

    def _look(self) -> None:
        self._late.observe(max(0.0, time.monotonic() - self._due))
        self._next()

    def stop(self) -> None:
        self._timer.cancel()
