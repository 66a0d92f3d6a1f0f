"""`read_from = "replica"`: cached answers come from replicas, and nothing that is decided by does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web

from gateway.store import Call, Gets, Known, Read, Redis, RedisDown, Script
from gateway.store.link import Link
from tests.conftest import StartGateway
from tests.harness import Gateway, UpstreamServer, eventually
from tests.plugins.cache.conftest import Client
from tests.servers import Cluster, Keeper, Sentinel, Server
from tests.store.conftest import MakeStore

KEY = "{page}"
OTHER = "{page}:other"
GET = Script("return redis.call('GET', KEYS[1])", "get.lua")
ENTRY = Read("GET", KEY, bulk=True, anywhere=True)


@dataclass
class Pair:
    """Where a key lives, and that server's replica; `replicas` has all there are, by their primary."""

    url: str
    primary: Server
    replicas: dict[Server, Server]

    @property
    def replica(self) -> Server:
        return self.replicas[self.primary]

    async def write(self, key: str, value: str) -> None:
        """Somebody else writes; the replica has it too."""
        async with self.primary.client() as client:
            await client.set(key, value)
            assert await client.wait(1, 2000) == 1

    @contextlib.asynccontextmanager
    async def lagging(self) -> AsyncIterator[None]:
        """The replicas answer, and hear nothing of their primaries."""
        for primary in self.replicas:
            await primary.ask("ACL SETUSER", "default", "-psync", "-sync")
            await primary.ask("CLIENT KILL", "TYPE", "replica")
        try:
            yield
        finally:
            for primary, replica in self.replicas.items():
                await primary.ask("ACL SETUSER", "default", "+@all")
                await eventually(replica.in_sync, within=10)

    async def told(self) -> int:
        """How many GETs all replicas have answered."""
        return sum([await gets(replica) for replica in self.replicas.values()])


@pytest.fixture(params=["cluster", "sentinel"])
async def pair(request: pytest.FixtureRequest, kept_cluster: Keeper[Cluster], kept_sentinel: Keeper[Sentinel]) -> Pair:
    if request.param == "sentinel":
        sentinel = await kept_sentinel.take()
        return Pair(sentinel.url, sentinel.primary, {sentinel.primary: sentinel.replica})
    cluster = await kept_cluster.take()
    replicas = {primary: await cluster.replica_of(primary) for primary in await cluster.primaries()}
    return Pair(cluster.url, await cluster.home(KEY), replicas)


def aside(store: Redis, pair: Pair) -> Link:
    """The link to the pair's replica."""
    (link,) = [link for link in store.all_links if link.where == ("127.0.0.1", pair.replica.port)]
    return link


async def gets(server: Server) -> int:
    """How many GETs a server has answered, those of scripts too."""
    calls = (await server.ask("INFO", "commandstats")).get("cmdstat_get", {"calls": 0})["calls"]
    return int(calls)


async def shows(store: Redis, value: bytes, within: float = 5) -> None:
    async def reads() -> bool:
        with contextlib.suppress(RedisDown):
            return bool(await store.look(ENTRY) == value)
        return False

    await eventually(reads, within=within)


async def test_what_may_come_from_anywhere_comes_from_the_replica_and_nothing_else(make: MakeStore, pair: Pair) -> None:
    store = await make(pair.url, read_from="replica")
    await pair.write(KEY, "page")
    before = await gets(pair.primary), await gets(pair.replica)
    assert await store.look(ENTRY) == b"page"
    assert isinstance(store.look(ENTRY), Known)
    assert (await gets(pair.primary), await gets(pair.replica)) == (before[0], before[1] + 1)
    assert await store.read("GET", OTHER, bulk=True) is None
    assert await store.ask("GET", KEY) == await store.ask("GET", KEY, bulk=True) == b"page"
    assert await store.call(Call(GET, [KEY])) == await store.run(GET, [KEY], bulk=True) == b"page"
    assert await store.gets(Gets([ENTRY, Read("GET", OTHER)])) == [b"page", None]
    assert (await gets(pair.primary), await gets(pair.replica)) == (before[0] + 5, before[1] + 1)


async def test_by_default_no_replica_is_connected_to(make: MakeStore, pair: Pair) -> None:
    store = await make(pair.url)
    assert store.all_links == store.links
    await pair.write(KEY, "page")
    before = await gets(pair.replica)
    assert await store.look(ENTRY) == b"page"
    assert await gets(pair.replica) == before


async def test_the_replica_withdraws_what_it_has_told(make: MakeStore, pair: Pair) -> None:
    store = await make(pair.url, read_from="replica")
    await pair.write(KEY, "old")
    assert await store.look(ENTRY) == b"old"
    before = await gets(pair.primary)
    await pair.write(KEY, "new")
    await shows(store, b"new", within=2)
    await pair.primary.ask("DEL", KEY)
    await eventually(lambda: store.mirror.get(KEY.encode()) is None, within=2)
    assert await store.look(ENTRY) is None
    await pair.write(KEY, "newer")
    await shows(store, b"newer", within=2)
    assert await gets(pair.primary) == before


async def test_a_killed_replica_costs_nothing_but_its_mirror(make: MakeStore, pair: Pair) -> None:
    store = await make(pair.url, read_from="replica")
    await pair.write(KEY, "page")
    assert await store.look(ENTRY) == b"page"
    link = aside(store, pair)
    pair.replica.kill()
    await eventually(lambda: not link.up)
    assert len(store.mirror) == 0
    assert store.up
    assert await store.look(ENTRY) == b"page"
    await pair.primary.ask("SET", KEY, "new")
    await shows(store, b"new", within=2)
    pair.replica.start()
    await eventually(pair.replica.in_sync, within=10)
    await eventually(lambda: link.up, within=10)
    before = await gets(pair.primary)
    await pair.write(KEY, "newer")
    await shows(store, b"newer", within=2)
    assert await gets(pair.primary) == before


async def test_a_replica_that_has_stopped_is_waited_for_once(make: MakeStore, pair: Pair) -> None:
    store = await make(pair.url, read_from="replica", timeout=0.1)
    await pair.write(KEY, "page")
    # A cluster that was just made may name another primary for a moment: the link to the replica is then made again.
    await eventually(lambda: all(link.up for link in store.all_links))
    pair.replica.pause()
    try:
        with pytest.raises(RedisDown):
            await store.look(ENTRY)
        for _ in range(3):
            assert await store.look(ENTRY) == b"page"
            store.mirror.drop(KEY.encode())
        assert store.up
    finally:
        pair.replica.resume()


async def test_a_failover_to_the_replica(make: MakeStore, pair: Pair) -> None:
    store = await make(pair.url, read_from="replica")
    await pair.write(KEY, "page")
    assert await store.look(ENTRY) == b"page"
    pair.primary.kill()
    await eventually(lambda: not store.up)
    answer = store.look(ENTRY)
    assert answer.ready, "what nobody can prove is not asked for"
    await eventually(lambda: store.up, within=10)

    async def written() -> bool:
        try:
            return await store.ask("SET", KEY, "new", bulk=True) == b"OK"
        except RedisDown:
            return False  # a cluster agrees on who is its primary a moment after that has been told

    await eventually(written, within=10)
    await shows(store, b"new", within=2)


@pytest.mark.parametrize("mirror", ["1 MiB", 0], ids=["mirror", "no mirror"])
@pytest.mark.parametrize("vary", [{}, {"Vary": "Accept-Language"}], ids=["plain", "vary"])
async def test_two_nodes_make_one_fetch_while_their_replica_lags(
    gateway: StartGateway, pair: Pair, upstream: UpstreamServer, http: Any, vary: dict[str, str], mirror: str | int
) -> None:
    """The replica never gets what was fetched: who waits, and who comes later, is given it by the primary."""
    table = {"url": pair.url, "read_from": "replica", "mirror": {"max_bytes": mirror}}
    config = {"plugins": {"cache": {}}, "redis": table}
    nodes = [await gateway(config), await gateway(config)]
    ask = Client(http)
    begun = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        begun.set()
        await eventually(lambda: sum(node.worker.server.in_flight for node in nodes) == 20, within=4)
        await asyncio.sleep(0.1)
        return web.Response(text="once", headers={"Cache-Control": "max-age=60", **vary})

    upstream.answer("/a", answer)
    before = await pair.told()
    async with pair.lagging():
        got = await asyncio.gather(*[ask(nodes[number % 2]) for number in range(20)])
        assert upstream.count("/a") == 1
        assert {answer.body for answer in got} == {b"once"}
        for number in range(6):
            assert (await ask(nodes[number % 2])).body == b"once"
        assert upstream.count("/a") == 1
        assert await pair.told() > before
    for node in nodes:
        await eventually(lambda node=node: hits(ask, node), within=5)  # type: ignore[misc]
    assert upstream.count("/a") == 1


async def hits(ask: Client, node: Gateway) -> bool:
    return (await ask(node)).cache == "HIT"
