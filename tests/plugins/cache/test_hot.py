"""Keys that are read too often for one server."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from plugins.cache.hot import CAPACITY, HOT_SECONDS, REPORTED, HotKeys, Sketch, names_of, ranking, shown
from plugins.cache.keys import Keys, Place, digest
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


@given(st.lists(st.sampled_from("abc"), max_size=300))
def test_each_hot_key_takes_its_own_turns(reads: list[str]) -> None:
    """An index and its variant are always read one after the other: together they must not share out the copies."""
    hot = HotKeys(b"hot", threshold=1, shards=4, clock=lambda: 0.0)
    hot.learn(1.0, "abc", [9, 9, 9])
    taken: dict[str, Counter[int]] = {name: Counter() for name in "abc"}
    for name in reads:
        taken[name][hot.shard(name)] += 1
    for name, numbers in taken.items():
        counts = [numbers[number] for number in range(4)]
        assert max(counts) - min(counts) <= 1, (name, counts)


@given(st.text(max_size=20))
def test_copies_lie_in_slots_of_their_own(text: str) -> None:
    place = Place("gateway", digest(text))
    slots = [key_slot(place.shard(number)) for number in range(64)]
    assert len(set(slots[1:])) == 63
    assert slots.count(slots[0]) <= 2, "only the entry itself, which lies beside its lock, may meet one of its copies"
    assert key_slot(place.lock) == slots[0]


@pytest.mark.parametrize("shards", [4, 8, 16, 64])
def test_reads_spread_over_the_primaries_of_a_cluster(shards: int) -> None:
    """Reads of many hot keys, each over its copies: no third of the slots gets much more than its share."""
    hot = HotKeys(b"hot", threshold=1, shards=shards, clock=lambda: 0.0)
    places = [Place("gateway", digest(str(number))) for number in range(100)]
    hot.learn(1.0, [place.digest for place in places], [9.0] * len(places))
    reads: Counter[int] = Counter()
    busiest = []
    for place in places:
        own = Counter(
            key_slot(place.shard(hot.shard(place.digest))) * 3 // REDIS_CLUSTER_HASH_SLOTS for _ in range(10 * shards)
        )
        busiest.append(max(own.values()) / own.total())
        reads += own
    expected = reads.total() / 3
    # Chi square per read, scaled to be independent of how many reads there are: 0 is even, 2 is all on one.
    assert sum((reads[third] - expected) ** 2 / expected for third in range(3)) / reads.total() < 0.01
    assert max(busiest) <= 0.75, "one key alone is spread too"


def test_what_people_see_of_a_url_has_no_query() -> None:
    target = Keys("gateway", "cache")

    class Asked:
        host = "api.test"
        target = "/reset?token=letmein"

    assert target.hot == b"gateway:hot"
    assert key_slot(names_of(target.hot)) == key_slot(target.hot)
    assert shown(Asked()) == "api.test/reset?…"
    Asked.target = "/" + "x" * 5000
    assert len(shown(Asked())) < 300


def test_what_names_stand_for_is_bounded() -> None:
    hot = HotKeys(b"hot", threshold=1, shards=4, clock=lambda: 0.0)

    class Asked:
        host = "api.test"
        target = "/"

    for number in range(20 * CAPACITY):
        hot.count(str(number), Asked())
    assert len(hot._asked) <= 2 * CAPACITY


async def test_the_ranking_tells_urls_and_rates(
    gateway: StartGateway, redis_client: redis.asyncio.Redis, ask: Client, say: Say
) -> None:
    say("/hot")
    say("/warm")
    node = await gateway({"plugins": {"cache": {}}, "redis": {"mirror": {"max_bytes": 0}}})
    plugin: Any = node.plugins["cache"]
    for path in ("/warm?key=letmein", *["/hot"] * 6, "/warm?key=letmein"):
        await ask(node, path)
    await plugin._hot.report(plugin._redis)
    ranked = await ranking(redis_client, b"gateway:hot", 10)
    assert [line.url for line in ranked] == ["api.test/hot", "api.test/warm?…"]
    assert ranked[0].reads == 5
    assert ranked[0].per_second == pytest.approx(5, abs=1.5)
    assert [line.url for line in await ranking(redis_client, b"gateway:hot", 1)] == ["api.test/hot"]
    names = names_of(b"gateway:hot")
    for key in (b"gateway:hot", names):
        assert 0 < await redis_client.pttl(key) <= 10_000
    assert b"letmein" not in b"".join(await redis_client.hvals(names))
    assert await ranking(redis_client, b"gateway:nothing", REPORTED) == []


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
    await redis_client.set(names_of(b"gateway:hot"), "garbage")
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

    [address] = plugin._lookup.keys._known._items.values()
    plugin._hot._until[address.digest] = float("inf")
    for _ in range(6):
        assert (await ask(node, "/hot")).cache == "HIT"
    say("/hot", "max-age=60", Vary="Accept, X-More")
    await ask(node, "/hot", method="PUT")
    for _ in range(6):
        await ask(node, "/hot")
    assert {(await ask(node, "/hot")).cache for _ in range(6)} == {"HIT"}


@pytest.mark.parametrize("fields", [{}, {"Cache-Tag": "news"}], ids=["plain", "tagged"])
async def test_a_hot_answer_costs_one_question(
    gateway: StartGateway, ask: Client, say: Say, fields: dict[str, str]
) -> None:
    say("/hot", "max-age=60", **fields)
    node = await gateway({"plugins": {"cache": {"shards": 3}}, "redis": {"mirror": {"max_bytes": 0}}})
    plugin: Any = node.plugins["cache"]
    await ask(node, "/hot")
    [address] = plugin._lookup.keys._known._items.values()
    plugin._hot._until[address.digest] = float("inf")
    for _ in range(6):  # each copy is made
        await ask(node, "/hot")
    asked = plugin._store.asked
    for _ in range(6):
        assert (await ask(node, "/hot")).cache == "HIT"
    assert plugin._store.asked == asked + 6
