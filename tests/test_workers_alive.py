"""How many workers each one believes there are."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import redis.asyncio

from gateway.fleet import LIFE_SECONDS, MAX_WORKERS, Fleet
from gateway.store import Redis
from gateway.store.link import LinkOptions
from tests.conftest import StartGateway
from tests.harness import Valkey, eventually
from tests.nodes import running_node


async def test_workers_know_of_each_other_and_forget_who_has_gone(
    gateway: StartGateway, redis_client: redis.asyncio.Redis
) -> None:
    first = await gateway()
    second = await gateway({"server": {"workers": 3}})
    assert (first.worker.fleet.workers, second.worker.fleet.workers) == (1, 3), "its own two siblings are starting"
    third = await gateway()
    assert third.worker.fleet.workers == 3
    await third.stop()
    assert await eventually(lambda: redis_client.zcard("gateway:nodes")) == 2
    assert 0 < await redis_client.pttl("gateway:nodes") <= LIFE_SECONDS * 1000


async def test_a_dead_one_is_taken_out_and_the_set_is_bounded(
    redis_url: str, redis_client: redis.asyncio.Redis
) -> None:
    await redis_client.zadd("gateway:nodes", {"dead": 1})
    await redis_client.zadd("gateway:nodes", {f"w{number}": 4e12 for number in range(MAX_WORKERS + 10)})
    store = Redis(LinkOptions(redis_url))
    await store.start()
    fleet = Fleet(store, "me", 1)
    await fleet.start()
    assert fleet.workers == MAX_WORKERS
    assert await redis_client.zscore("gateway:nodes", "dead") is None
    await fleet.stop()
    await store.stop()


async def test_the_number_stands_while_redis_is_away_and_after_it_came_back_empty(
    gateway: StartGateway, own_valkey: Valkey
) -> None:
    table = {"redis": {"url": own_valkey.url}}
    nodes = [await gateway(table) for _ in range(3)]
    fleet = nodes[2].worker.fleet
    assert fleet.workers == 3
    own_valkey.kill()
    await eventually(lambda: not nodes[2].worker.redis.up)
    await fleet._tell()
    assert fleet.workers == 3
    own_valkey.start()
    await eventually(lambda: nodes[2].worker.redis.up)
    await fleet._tell()
    assert fleet.workers == 3, "the others have not told yet that they are there"
    for _ in range(3):
        await fleet._tell()
    assert fleet.workers == 1, "by now they would have"


async def test_health_and_metrics_tell_what_goes_on_without_redis(tmp_path: Path, own_valkey: Valkey) -> None:
    tables = {"redis": {"url": own_valkey.url}, "plugins": {"rate_limit": {"limits": ["100/minute"]}}}
    upstreams = {"default": {"url": "http://127.0.0.1:1"}}
    async with running_node(tmp_path, server={"workers": 2}, upstreams=upstreams, **tables) as node:
        health = await node.health()
        assert (health["fleet"], health["redis"]["decided_without"]) == ({"workers": 2}, {})
        own_valkey.pause()
        async with aiohttp.ClientSession() as http:
            for _ in range(3):
                async with http.get(node.url) as answer:
                    assert answer.status == 502, "the limit lets pass; there is no upstream"
        health = await node.health()
        assert health["status"] == "degraded"
        assert any("does not answer in time" in link["why"] for link in health["redis"]["links"])
        assert health["redis"]["decided_without"] == {"rate_limit": {"local": 3}}
        metrics = await node.metrics()
        assert metrics["gateway_decided_without_redis_total"] == 3
        assert metrics["gateway_redis_stalled"] >= 1
        assert metrics["gateway_fleet_workers"] == 2


async def test_without_redis_from_the_start_a_node_knows_its_own_workers(gateway: StartGateway) -> None:
    node = await gateway({"redis": {"url": "redis://127.0.0.1:1"}, "server": {"workers": 4}})
    assert node.worker.fleet.workers == 4
