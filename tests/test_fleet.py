"""Several nodes that act as one, and what their clients see when Redis goes away and comes back."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
import redis.asyncio

from plugins.session import create_session_async
from tests.conftest import StartGateway
from tests.harness import Gateway, UpstreamServer, Valkey, eventually

CONFIG: dict[str, Any] = {
    "plugins": {
        "request_id": {},
        "rate_limit": {"limits": ["100000/minute"]},
        "session": {"sources": ["cookie"]},
        "token_blacklist": {},
        "cache": {"ttl": 1},
    },
    "routes": [
        {"name": "open", "match": {"path": "/open/*"}, "plugins": ["request_id", "rate_limit", "cache"]},
        {
            "name": "private",
            "match": {"path": "/private/*"},
            "plugins": ["request_id", "rate_limit", "token_blacklist", "session", "cache"],
        },
    ],
}


async def log_in(url: str, user: str) -> str:
    client = redis.asyncio.Redis.from_url(url)
    session = await create_session_async(client, user)
    await client.aclose()
    return session


class Load:
    """Steady requests from a few clients at once, with what came of them counted."""

    def __init__(self, http: aiohttp.ClientSession, nodes: list[Gateway], session: str) -> None:
        self.session = session
        self.http = http
        self.nodes = nodes
        self.counts: dict[str, Counter[int]] = {"open": Counter(), "private": Counter()}
        self.slowest = {"open": 0.0, "private": 0.0}
        self._stop = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        for index in range(8):
            self._tasks.append(asyncio.create_task(self._client(index)))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def _client(self, index: int) -> None:
        number = index
        while not self._stop:
            number += 1
            route = "private" if number % 2 else "open"
            node = self.nodes[number // 2 % len(self.nodes)]
            headers = {"Cookie": f"session={self.session}"}
            started = time.monotonic()
            async with self.http.get(f"{node.url}/{route}/{number % 50}", headers=headers) as answer:
                await answer.read()
            self.slowest[route] = max(self.slowest[route], time.monotonic() - started)
            self.counts[route][answer.status] += 1

    async def settled(self, requests: int = 100) -> None:
        """So many more answers have come."""
        goal = sum(sum(counter.values()) for counter in self.counts.values()) + requests
        await eventually(lambda: sum(sum(counter.values()) for counter in self.counts.values()) >= goal, within=20)

    def forget(self) -> None:
        for counter in self.counts.values():
            counter.clear()
        self.slowest = dict.fromkeys(self.slowest, 0.0)


Fault = Callable[[Valkey], Awaitable[None]]


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_redis_goes_and_comes_back_under_load(
    gateway: StartGateway, http: aiohttp.ClientSession, own_valkey: Valkey, fault: str
) -> None:
    """Nothing beyond what `on_redis_failure` says: limits are counted locally, the cache is passed by, and only
    where a session must be checked clients get 503. Nobody waits longer than `redis.timeout` for it."""
    settings = {"url": own_valkey.url, "timeout": 0.25, "max_silence": 0.6, "backoff_max": 0.1}
    nodes = [await gateway({**CONFIG, "redis": settings}) for _ in range(2)]
    async with Load(http, nodes, await log_in(own_valkey.url, "u1")) as load:
        await load.settled()
        assert set(load.counts["open"]) == set(load.counts["private"]) == {200}

        own_valkey.kill() if fault == "kill" else own_valkey.pause()
        await load.settled()
        await eventually(lambda: not any(node.worker.redis.up for node in nodes))
        assert set(load.counts["open"]) == {200}
        assert set(load.counts["private"]) <= {200, 503}
        assert load.slowest["open"] < 2.0
        load.forget()
        await load.settled()
        assert set(load.counts["open"]) == {200}
        assert set(load.counts["private"]) == {503}
        assert max(load.slowest.values()) < 0.5, "while the link is down nobody waits"

        own_valkey.start() if fault == "kill" else own_valkey.resume()
        load.session = await log_in(own_valkey.url, "u1")
        await eventually(lambda: all(node.worker.redis.up for node in nodes))
        await load.settled(20)  # those that were on their way
        load.forget()
        await load.settled()
        assert set(load.counts["open"]) == set(load.counts["private"]) == {200}


async def test_a_limit_holds_over_all_nodes(gateway: StartGateway, http: aiohttp.ClientSession) -> None:
    config = {"plugins": {"rate_limit": {"limits": ["50/minute"]}}}
    nodes = [await gateway(config) for _ in range(2)]

    async def status(number: int) -> int:
        async with http.get(nodes[number % 2].url) as answer:
            return answer.status

    counts = Counter(await asyncio.gather(*(status(number) for number in range(120))))
    assert counts == {200: 50, 429: 70}


async def test_a_warm_chain_needs_one_round_trip(
    gateway: StartGateway, http: aiohttp.ClientSession, redis_url: str, upstream: UpstreamServer
) -> None:
    """Session, blacklist and cache from the mirror; the limit is the one question left."""
    node = await gateway({**CONFIG, "plugins": {**CONFIG["plugins"], "cache": {"ttl": 60}}})
    session = await log_in(redis_url, "u1")
    headers = {"Cookie": f"session={session}", "Authorization": "Bearer abc"}
    for _ in range(3):
        async with http.get(f"{node.url}/private/a", headers=headers) as answer:
            assert answer.status == 200
    main, bulk = node.worker.redis.links
    before = (main.commands, bulk.commands)
    for _ in range(10):
        async with http.get(f"{node.url}/private/a", headers=headers) as answer:
            assert answer.headers["X-Cache"] == "HIT"
    assert (main.commands - before[0], bulk.commands - before[1]) == (10, 0)
    assert upstream.count("/private/a") == 1
