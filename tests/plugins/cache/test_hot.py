"""Keys that are read too often for one server."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st

from plugins.cache.hot import HOT_SECONDS, HotKeys, Sketch
from tests.conftest import StartGateway
from tests.harness import UpstreamServer, eventually
from tests.plugins.cache.conftest import Client

Say = Callable[..., None]


@given(st.lists(st.integers(0, 30), max_size=400), st.integers(1, 10))
def test_the_sketch_errs_by_no_more_than_it_says(numbers: list[int], capacity: int) -> None:
    sketch = Sketch(capacity)
    for number in numbers:
        sketch.add(str(number))
    counted = dict(sketch.take(capacity))
    true = Counter(map(str, numbers))
    assert len(counted) <= capacity
    for name, count in true.items():
        assert count - len(numbers) / (capacity + 1) <= counted.get(name, 0) <= count


def test_the_sketch_finds_the_hot_one_among_very_many() -> None:
    sketch = Sketch(16)
    names = ["hot"] * 2000 + [str(number) for number in range(20_000)]
    random.Random(1).shuffle(names)
    for name in names:
        sketch.add(name)
    assert sketch.take(1)[0][0] == "hot"
    assert sketch.take(1) == []


def test_a_key_stays_hot_for_a_while() -> None:
    now = 0.0
    hot = HotKeys(b"hot", threshold=10, shards=3, clock=lambda: now)
    hot.learn(2.0, ["a", "b"], [20, 19])
    assert ("a" in hot, "b" in hot) == (True, False)
    assert sorted({hot.shard("a") for _ in range(6)}) == [0, 1, 2]
    assert {hot.shard("b") for _ in range(6)} == {0}
    assert list(hot.shards("a")) == [1, 2]
    assert list(hot.shards("b")) == []
    now = HOT_SECONDS + 1
    hot.learn(2.0, [], [])
    assert "a" not in hot


async def test_a_hot_key_is_spread_and_a_purge_reaches_all_copies(
    gateway: StartGateway, upstream: UpstreamServer, redis_client: redis.asyncio.Redis, ask: Client, say: Say
) -> None:
    say("/hot", "max-age=60", Vary="Accept")
    plain: dict[str, Any] = {
        "plugins": {"cache": {"hot_threshold": 5, "shards": 3}},
        "redis": {"mirror": {"max_bytes": 0}},
    }
    nodes = [await gateway(plain), await gateway(plain)]
    plugins: list[Any] = [node.plugins["cache"] for node in nodes]
    for _ in range(10):
        for node in nodes:
            await ask(node, "/hot")
    for plugin in plugins:
        await plugin._hot.report(plugin._redis)
    assert await redis_client.zcard("gateway:hot") == 2  # the index and the variant
    assert 0 < await redis_client.pttl("gateway:hot") <= 10_000
    await plugins[0]._hot.report(plugins[0]._redis)
    assert {(await ask(nodes[0], "/hot")).cache for _ in range(12)} == {"HIT"}

    async def copies() -> list[bytes]:
        return [key for key in await redis_client.keys("gateway:cache:*") if b"#" in key]

    async def spread() -> bool:
        return len(await copies()) == 4

    await eventually(spread)
    for key in await copies():
        assert await redis_client.pttl(key) > 0
    assert upstream.count("/hot") == 1
    await ask(nodes[1], "/hot", method="PUT")

    async def all_new() -> bool:
        return {(await ask(nodes[0], "/hot")).body for _ in range(6)} == {b"/hot 3"}

    await eventually(all_new, within=1)
    assert upstream.count("/hot") == 3


async def test_garbage_in_the_ranking_is_overwritten(
    gateway: StartGateway, redis_client: redis.asyncio.Redis, ask: Client, say: Say
) -> None:
    say("/hot")
    await redis_client.set("gateway:hot", "garbage")
    node = await gateway({"plugins": {"cache": {}}})
    plugin: Any = node.plugins["cache"]
    for _ in range(2):
        await ask(node, "/hot")
    await plugin._hot.report(plugin._redis)
    assert await redis_client.type("gateway:hot") == b"zset"


async def test_copies_of_an_index_do_not_lead_to_where_nothing_is_stored_any_more(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say
) -> None:
    say("/hot", "max-age=60", Vary="Accept")
    config = {"plugins": {"cache": {"shards": 3}}, "redis": {"mirror": {"max_bytes": 0}}}
    node = await gateway(config)
    plugin: Any = node.plugins["cache"]
    await ask(node, "/hot")

    address = plugin._lookup.keys.address("all", "http", "api.test", "/hot", None, (), ())
    plugin._hot._until[address.digest] = float("inf")
    for _ in range(6):
        assert (await ask(node, "/hot")).cache == "HIT"
    say("/hot", "max-age=60", Vary="Accept, X-More")
    await ask(node, "/hot", method="PUT")
    for _ in range(6):
        await ask(node, "/hot")
    assert {(await ask(node, "/hot")).cache for _ in range(6)} == {"HIT"}
