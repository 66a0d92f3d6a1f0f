"""What a limit is worth while Redis is away, and when it is back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
import redis
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st

from plugins.rate_limit.limits import Limit, parse_limit
from plugins.rate_limit.local import LocalLimits
from plugins.rate_limit.plugin import SCRIPTS, RateLimit, arguments
from plugins.rate_limit.settling import Settling
from plugins.rate_limit.who import hashed
from tests.conftest import StartGateway
from tests.harness import Gateway, Valkey, eventually
from tests.relay import Relay
from tests.servers import Cluster

SECOND = 1_000_000
LIMIT = 30
NODES = 3
ALGORITHMS = ("sliding_window", "token_bucket")


def table(url: str, limit: str = f"{LIMIT}/hour", **keys: Any) -> dict[str, Any]:
    return {
        "redis": {"url": url, "timeout": "100ms", "backoff_max": "20ms"},
        "plugins": {"api": {"use": "rate_limit", "limits": [limit], **keys}},
    }


async def hammer(http: aiohttp.ClientSession, nodes: list[Gateway], each: int) -> Counter[int]:
    """So many requests to each node, all at once; how often each status came."""

    async def one(node: Gateway) -> int:
        async with http.get(node.url) as response:
            return response.status

    return Counter(await asyncio.gather(*[one(node) for node in nodes for _ in range(each)]))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_an_outage_gives_away_one_limit_more_however_often_it_comes(
    gateway: StartGateway, http: aiohttp.ClientSession, relay: Relay, algorithm: str
) -> None:
    nodes = [await gateway(table(relay.url, algorithm=algorithm)) for _ in range(NODES)]
    for node in nodes:
        await node.worker.fleet._tell()
    before = (await hammer(http, nodes, 5))[200]
    assert before == 15
    during = 0
    for _ in range(3):
        relay.refuse()
        await eventually(lambda: not any(node.worker.redis.up for node in nodes))
        during += (await hammer(http, nodes, 25))[200]
        await relay.start()
        await eventually(lambda: all(node.worker.redis.up for node in nodes))
    assert during == NODES * (LIMIT // NODES), "each node gives away its share, once"
    for node in nodes:
        await eventually(lambda node=node: not node.plugins["api"].local.owing)  # type: ignore[attr-defined]
    after = await hammer(http, nodes, 25)
    assert after == {429: 75}, "what passed without Redis counts"
    assert before + during <= LIMIT + NODES * max(1, LIMIT // NODES)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_redis_that_comes_back_empty_learns_what_passed_meanwhile(
    gateway: StartGateway, http: aiohttp.ClientSession, own_valkey: Valkey, algorithm: str
) -> None:
    nodes = [await gateway(table(own_valkey.url, algorithm=algorithm)) for _ in range(2)]
    await nodes[0].worker.fleet._tell()
    assert (await hammer(http, nodes, 5))[200] == 10
    own_valkey.kill()
    await eventually(lambda: not any(node.worker.redis.up for node in nodes))
    assert (await hammer(http, nodes, 10))[200] == 20
    own_valkey.start()
    await eventually(lambda: all(node.worker.redis.up for node in nodes))
    for node in nodes:
        # Not asked: the background tells.
        await eventually(lambda node=node: not node.plugins["api"].local.owing)  # type: ignore[attr-defined]
    assert (await hammer(http, nodes, 20))[200] == LIMIT - 20, "the ten from before are lost with Redis' memory"


async def test_a_client_that_comes_first_finds_its_own_requests_counted(
    gateway: StartGateway, http: aiohttp.ClientSession, own_valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugins.rate_limit.settling.PAUSE_SECONDS", 60.0)
    node = await gateway(table(own_valkey.url, "5/hour"))
    own_valkey.kill()
    await eventually(lambda: not node.worker.redis.up)
    assert await hammer(http, [node], 4) == {200: 4}
    own_valkey.start()
    await eventually(lambda: node.worker.redis.up)
    assert await hammer(http, [node], 4) == {200: 1, 429: 3}
    assert not node.plugins["api"].local.owing  # type: ignore[attr-defined]


async def owing_four(
    gateway: StartGateway, http: aiohttp.ClientSession, relay: Relay, limit: str, **keys: Any
) -> Gateway:
    """A node that has let four requests pass while Redis was away, and has just found it again."""
    node = await gateway(table(relay.url, limit, **keys))
    relay.refuse()
    await eventually(lambda: not node.worker.redis.up)
    assert await hammer(http, [node], 4) == {200: 4}
    await relay.start()
    await eventually(lambda: node.worker.redis.up)
    return node


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_what_was_told_when_redis_went_away_again_is_told_once_more(
    gateway: StartGateway, http: aiohttp.ClientSession, relay: Relay, algorithm: str
) -> None:
    node = await owing_four(gateway, http, relay, "5/hour", algorithm=algorithm)
    api: Any = node.plugins["api"]
    relay.partition()
    # Told, as far as this node knows; it does not arrive.
    await eventually(lambda: not api.local.owing)
    relay.cut()
    await eventually(lambda: api.local.owing)
    relay.heal()
    await eventually(lambda: node.worker.redis.up and not api.local.owing)
    assert await hammer(http, [node], 4) == {200: 1, 429: 3}


async def test_what_redis_was_slow_to_take_counts_once(
    gateway: StartGateway, http: aiohttp.ClientSession, relay: Relay, redis_client: redis.asyncio.Redis
) -> None:
    """The question has arrived; only the answer is late."""
    node = await owing_four(gateway, http, relay, "40/hour")
    api: Any = node.plugins["api"]
    relay.stall()
    await eventually(lambda: node.worker.redis.links[0].stalled)
    relay.heal()
    await eventually(lambda: not node.worker.redis.links[0].stalled and not api.local.owing)
    await node.worker.redis.ping()
    [key] = await redis_client.keys("gateway:rate:*")
    assert await redis_client.llen(key) == 4


async def test_many_debts_are_told_without_holding_up_redis(
    gateway: StartGateway, redis_client: redis.asyncio.Redis
) -> None:
    """Sent all at once they would take Redis longer than `timeout`."""
    node = await gateway({"plugins": {"api": {"use": "rate_limit", "limits": ["20000/hour"]}}})
    api: Any = node.plugins["api"]
    for number in range(100):
        for _ in range(1000):
            api.local.take(f"c{number}")
    await redis_client.config_resetstat()
    api._settling.begin(node.worker.redis)
    most = 0
    while api.local.owing:
        await asyncio.sleep(0)
        most = max(most, node.worker.redis.links[0].waiting)
    assert most <= 3
    await node.worker.redis.ping()
    assert (await redis_client.info("commandstats"))["cmdstat_evalsha"]["calls"] == 100
    assert {await redis_client.llen(key) for key in await redis_client.keys("gateway:rate:*")} == {1000}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_redis_without_room_is_told_when_it_has_some(
    gateway: StartGateway, http: aiohttp.ClientSession, own_valkey: Valkey, algorithm: str
) -> None:
    node = await gateway(table(own_valkey.url, "5/hour", algorithm=algorithm))
    api: Any = node.plugins["api"]
    async with redis.asyncio.Redis.from_url(own_valkey.url) as client:
        await client.config_set("maxmemory-policy", "noeviction")
        await client.config_set("maxmemory", 1)
        assert await hammer(http, [node], 6) == {200: 5, 429: 1}
        asked = node.worker.redis.asked
        await asyncio.sleep(0.3)
        assert node.worker.redis.asked - asked < 30, "it is asked now and then whether it has room"
        await client.config_set("maxmemory", 0)
    await eventually(lambda: not api.local.owing)
    await node.worker.redis.ping()
    assert await hammer(http, [node], 2) == {429: 2}


def test_what_a_client_takes_is_not_reckoned_twice() -> None:
    """Each outage ends with debts that are told: what has left its window meanwhile is no longer there."""
    now = 0
    local = LocalLimits("sliding_window", [parse_limit("100/second")], clock=lambda: now, max_bytes=50_000)
    for _ in range(4):
        for client in range(20):
            for _ in range(100):
                local.take(f"c{client}")
        now += 2 * SECOND
        for who in list(local.owing):
            local.debt(who)
            local.settled(who)
    allowed = sum(local.take(who)[0] for _ in range(500) for who in ("a", "b"))
    assert allowed == 200


# -- the scripts --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(shared_valkey: Valkey) -> Iterator[redis.Redis]:
    connected = redis.Redis.from_url(shared_valkey.url)
    yield connected
    connected.close()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(st.integers(0, 12), st.lists(st.integers(0, 12), max_size=4), st.integers(0, 3))
def test_what_is_told_counts_like_what_was_asked(
    client: redis.Redis, algorithm: Any, asked: int, told: list[int], again: int
) -> None:
    """However much was counted there and told by how many workers: what is left is what would be left."""
    client.flushall()
    limits = [Limit("", 10, 3600 * SECOND, 10), Limit("", 1000, 7200 * SECOND, 1000)]
    keys = [b"{k}:1", b"{k}:2"]

    def take() -> int:
        return int(client.eval(SCRIPTS[algorithm].source, 2, *keys, *arguments(algorithm, limits))[0])

    passed = sum(take() for _ in range(asked))
    for count in told:
        local = LocalLimits(algorithm, limits)
        settling = Settling(local, algorithm, limits, lambda who: keys)
        passed_here = sum(local.take("k")[0] for _ in range(count))
        passed += passed_here
        if passed_here:
            client.eval(settling.script.source, 2, *keys, *settling._arguments(local.debt("k")))
            local.settled("k")
        for _ in range(again):
            assert sum(sum(debt) for debt in local.debt("k")) == 0 if passed_here else True
    assert sum(take() for _ in range(20)) == max(0, 10 - passed)
    assert all(client.pttl(key) > 0 for key in keys if client.exists(key))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_has_left_the_window_is_forgiven(algorithm: Any) -> None:
    now = [1000 * SECOND]
    local = LocalLimits(algorithm, [Limit("", 2, 10 * SECOND, 2)], clock=lambda: now[0])
    assert [local.take("k")[0] for _ in range(3)] == [1, 1, 0]
    owed = local.debt("k")[0]
    assert owed in ([0, 0], [2])
    now[0] += 11 * SECOND
    assert local.debt("k")[0] in ([], [0])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_garbage_in_redis_is_no_reason_to_forget(client: redis.Redis, algorithm: Any) -> None:
    client.flushall()
    limits = [Limit("", 3, 3600 * SECOND, 3)]
    local = LocalLimits(algorithm, limits)
    settling = Settling(local, algorithm, limits, lambda who: [b"k"])
    local.take("k")
    local.take("k")
    client.hset("k", "a", "b")
    client.eval(settling.script.source, 1, "k", *settling._arguments(local.debt("k")))
    taken = [client.eval(SCRIPTS[algorithm].source, 1, "k", *arguments(algorithm, limits))[0] for _ in range(3)]
    assert taken == [1, 0, 0]


def test_a_debt_of_very_many_fits(client: redis.Redis) -> None:
    client.flushall()
    limits = [Limit("", 50_000, 3600 * SECOND, 50_000)]
    local = LocalLimits("sliding_window", limits)
    settling = Settling(local, "sliding_window", limits, lambda who: [b"k"])
    for _ in range(50_001):
        local.take("k")
    client.eval(settling.script.source, 1, "k", *settling._arguments(local.debt("k")))
    assert client.llen("k") == 50_000
    assert client.eval(SCRIPTS["sliding_window"].source, 1, "k", *arguments("sliding_window", limits))[0] == 0


def test_a_share_that_shrinks_counts_what_was_given_before() -> None:
    local = LocalLimits("sliding_window", [Limit("", 10, 60 * SECOND, 10)], clock=lambda: 1000 * SECOND)
    assert sum(local.take("k")[0] for _ in range(6)) == 6
    local.share(2)
    assert local.take("k")[:3] == [0, 1, 0]
    local.share(1)
    assert sum(local.take("k")[0] for _ in range(6)) == 4


async def test_in_a_cluster_debts_are_told_to_the_servers_that_are_there(
    gateway: StartGateway, http: aiohttp.ClientSession, cluster: Cluster
) -> None:
    """Each client's keys lie on one primary; one that has stopped is no reason to forget what the others are owed."""
    config = table(cluster.url, "4/hour", by="header:X-Key") | {"server": {"trusted_proxies": ["127.0.0.1"]}}
    node = await gateway(config)
    plugin = node.plugins["api"]
    assert isinstance(plugin, RateLimit)

    async def ask(key: str) -> int:
        async with http.get(node.url, headers={"X-Key": key}) as response:
            return response.status

    names = [f"c{number}" for number in range(12)]
    homes = {name: await cluster.home(plugin._keys(f"x-key:{hashed(name)}")[0]) for name in names}
    stopped = homes[names[0]]
    here = [name for name in names if homes[name] is not stopped]
    assert 0 < len(here) < len(names)
    assert [await ask(name) for name in names] == [200] * 12
    stopped.pause()
    try:
        assert await ask(names[0]) == 200, "decided here"
        for name in here:
            # As if their server had been away, too.
            assert [plugin.local.take(f"x-key:{hashed(name)}")[0] for _ in range(2)] == [1, 1]
        await eventually(lambda: not any(f"x-key:{hashed(name)}" in plugin.local.owing for name in here))
        assert f"x-key:{hashed(names[0])}" in plugin.local.owing
        assert [await ask(name) for name in here] == [200] * len(here)
        assert [await ask(name) for name in here] == [429] * len(here)
    finally:
        stopped.resume()
