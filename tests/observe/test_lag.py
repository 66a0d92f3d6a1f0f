"""A loop that is held up shows it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from gateway.observe import LoopLag, Metrics
from gateway.observe.lag import BOUNDS, INTERVAL


def late(metrics: Metrics) -> dict[str, Any]:
    ((_, value),) = metrics.snapshot()["gateway_loop_lag_seconds"]["series"]
    return dict(value)


async def test_what_holds_up_the_loop_is_seen() -> None:
    metrics = Metrics()
    lag = LoopLag(metrics)
    time.sleep(INTERVAL + 0.05)  # this is the fault
    async with asyncio.timeout(5):
        while not sum(late(metrics)["counts"]):
            await asyncio.sleep(0)
    assert late(metrics)["sum"] >= 0.049
    assert sum(late(metrics)["counts"][BOUNDS.index(0.03) + 1 :]) == 1
    lag.stop()


async def test_it_looks_again_until_it_is_stopped() -> None:
    metrics = Metrics()
    lag = LoopLag(metrics)
    async with asyncio.timeout(5):
        while sum(late(metrics)["counts"]) < 3:
            await asyncio.sleep(INTERVAL)
    lag.stop()
    seen = sum(late(metrics)["counts"])
    await asyncio.sleep(3 * INTERVAL)
    assert sum(late(metrics)["counts"]) == seen
