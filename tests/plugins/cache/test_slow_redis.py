"""Redis answers, but late: misses make few trips, and nothing is left behind by who cannot wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis.asyncio

from tests.conftest import StartGateway
from tests.harness import UpstreamServer, eventually
from tests.plugins.cache.conftest import Client, Clock
from tests.relay import Relay

Say = Callable[..., None]


def behind(relay: Relay, **options: Any) -> dict[str, Any]:
    return {"redis": {"url": relay.url, **options}, "plugins": {"cache": {}}}


async def test_a_miss_goes_to_redis_three_times(
    gateway: StartGateway, relay: Relay, upstream: UpstreamServer, ask: Client, say: Say
) -> None:
    """To look, for the lock with all that the fetch needs, and to store."""
    node = await gateway(behind(relay))
    await ask(node, "/warm")  # to connect to the upstream is not counted
    relay.delay = 0.1
    took = []
    for number in range(5):
        say(f"/{number}")
        began = time.monotonic()
        got = await ask(node, f"/{number}")
        took.append(time.monotonic() - began)
        assert "stored" in got.why
    # The quickest: the machine may be busy.
    assert 0.3 <= min(took) < 0.4


@pytest.mark.parametrize("what", ["outlived", "outlived and not proven", "purged", "purged elsewhere"])
async def test_who_gives_up_on_the_way_leaves_no_lock_behind(
    gateway: StartGateway,
    relay: Relay,
    ask: Client,
    say: Say,
    clock: Clock,
    redis_client: redis.asyncio.Redis,
    what: str,
) -> None:
    """The lock brings what is there, which has to be proven: one trip more than `timeout` leaves time for."""
    say("/a", "max-age=1, stale-if-error=60")
    node = await gateway(behind(relay, timeout="250ms"))
    clock.stand(node)
    await ask(node)
    if what.startswith("outlived"):
        clock.pass_by(2)
    if what.endswith("not proven"):
        node.worker.redis.mirror.clear()
    if what == "purged":
        await ask(node, method="PUT")
    relay.delay = 0.1
    if what == "purged elsewhere":
        await redis_client.unlink(*await redis_client.keys("gateway:gen:*"))
    began = time.monotonic()
    assert (await ask(node)).status == 200
    assert time.monotonic() - began < 0.6
    relay.heal()

    async def unlocked() -> bool:
        return not await redis_client.keys("gateway:lock:*")

    # Well within `lock_ttl`, which is 5 s.
    await eventually(unlocked, within=1)


@pytest.mark.parametrize("control", ["max-age=60", "no-store"])
async def test_a_fetch_that_ends_while_redis_is_away_leaves_no_lock_behind(
    gateway: StartGateway, relay: Relay, ask: Client, say: Say, redis_client: redis.asyncio.Redis, control: str
) -> None:
    node = await gateway(behind(relay, backoff_max="50ms"))
    say("/a", control, delay=0.3)
    first = asyncio.ensure_future(ask(node))
    await eventually(lambda: redis_client.keys("gateway:lock:*"))
    relay.refuse()
    assert (await first).body == b"/a 1"
    await relay.start()

    async def unlocked() -> bool:
        return not await redis_client.keys("gateway:lock:*")

    # Well within `lock_ttl`, which is 5 s.
    await eventually(unlocked, within=3)
