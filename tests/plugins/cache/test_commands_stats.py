"""`gateway cache stats` and `gateway cache hot`."""

from __future__ import annotations

import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio

from gateway.admin.app import Admin
from gateway.config import Config
from gateway.listen import Listeners
from gateway.observe import Observer
from gateway.observe.metrics import Metrics
from plugins.cache.stats import by_route, kind_in, kind_of, together
from tests.admin.test_app import Place, Process, Supervised
from tests.conftest import StartGateway
from tests.harness import Gateway, UpstreamServer
from tests.plugins.cache.conftest import Client
from tests.plugins.cache.console import command, write_config
from tests.servers import Cluster

Say = Callable[..., None]


@pytest.fixture
def listeners() -> Listeners:
    return Listeners("127.0.0.1:0", key="admin.listen")


@pytest.fixture
def config(tmp_path: Path, redis_url: str, upstream: UpstreamServer, listeners: Listeners) -> Path:
    return write_config(tmp_path, redis_url, upstream.url, admin=f"127.0.0.1:{listeners.port}")


@pytest.fixture
async def node(gateway: StartGateway, config: Path, listeners: Listeners) -> AsyncIterator[Gateway]:
    """A gateway without a mirror, with its admin listener."""
    metrics = Metrics()
    tables = tomllib.loads(config.read_text())
    tables["redis"]["mirror"] = {"max_bytes": 0}
    node = await gateway(tables, metrics=metrics, observer=Observer(metrics))

    class Watched(Process):
        async def ask_snapshot(self, timeout: float) -> bool:
            self.snapshot = {"metrics": metrics.snapshot()}
            return True

    supervised = Supervised([Place(0, Watched(1))], config=Config.model_validate(tomllib.loads(config.read_text())))
    admin = Admin(supervised)
    await admin.start(listeners)
    node.admin_url = admin.url  # type: ignore[attr-defined]
    yield node
    await admin.stop()


async def fill(node: Gateway, ask: Client, say: Say) -> None:
    say("/a", "max-age=60", Vary="Accept", Cache_Tag="news")
    say("/b", "max-age=60")
    say("/c", "no-store")
    for path in ("/a", "/b", "/c", "/b", "/b?secret=letmein"):
        await ask(node, path)


async def test_it_tells_what_is_stored_and_how_well_it_does(
    node: Gateway, config: Path, redis_client: redis.asyncio.Redis, ask: Client, say: Say
) -> None:
    await fill(node, ask, say)
    await redis_client.set("gateway:lock:{x}", "owner", px=10_000)
    await redis_client.set("gateway:cache:{x}", "garbage")
    await redis_client.set("gateway:cache:{x#01}", "copy")
    await redis_client.set("gateway:session:x", "not ours")
    await redis_client.set("other:cache:{x}", "not ours")
    done = await command(config, "stats", "--json")
    assert (done.code, done.err) == (0, "")
    told = done.json()
    assert (told["exact"], told["all_keys"]) == (True, await redis_client.dbsize())
    counts = {kind: found["keys"] for kind, found in told["kinds"].items()}
    assert counts.pop("generations") == len(await redis_client.keys("gateway:gen:*"))
    assert counts == {"answers": 3, "indexes": 1, "marks": 1, "locks": 1, "unreadable": 1, "copies": 1}
    names = await redis_client.keys("gateway:cache:*") + await redis_client.keys("gateway:gen:*") + ["gateway:lock:{x}"]
    assert told["bytes"] == sum([await redis_client.memory_usage(name, samples=0) for name in names])
    (every,) = [route for route in told["routes"] if route["route"] == "all"]
    assert (every["hit"], every["miss"], every["hit_ratio"]) == (1, 4, 0.2)
    assert {route["route"] for route in told["routes"]} == {"all", "read"}
    assert told["server"]["used_memory"] > 0


async def test_for_people_it_is_a_table(node: Gateway, config: Path, ask: Client, say: Say) -> None:
    await fill(node, ask, say)
    plugin: Any = node.plugins["cache"]
    await plugin._hot.report(plugin._redis)
    out = (await command(config, "stats")).out
    for text in ("answers", "Exact: all", "hit ratio", "20.0 %", "noeviction", "api.test/b"):
        assert text in out
    assert "letmein" not in out


async def test_of_too_many_keys_it_estimates(tmp_path: Path, redis_url: str, redis_client: redis.asyncio.Redis) -> None:
    config = write_config(tmp_path, redis_url, "http://127.0.0.1:1")
    pipeline = redis_client.pipeline()
    for number in range(8000):
        pipeline.set(f"gateway:lock:{{{number}}}" if number % 2 else f"other:{number:08}", "owner")
    await pipeline.execute()
    done = await command(config, "stats", "--max-keys", "3000", "--json")
    told = done.json()
    assert not told["exact"]
    assert 3000 <= told["looked_at"] < 6000
    assert told["kinds"]["locks"]["keys"] == pytest.approx(4000, rel=0.15)
    assert told["routes"] is None
    out = (await command(config, "stats", "--max-keys", "3000")).out
    assert "Estimated from" in out
    assert "no gateway answers at admin.listen" in out


async def test_a_clusters_primaries_together_and_each(
    gateway: StartGateway, tmp_path: Path, cluster: Cluster, upstream: UpstreamServer, ask: Client, say: Say
) -> None:
    config = write_config(tmp_path, cluster.url, upstream.url)
    tables = tomllib.loads(config.read_text())
    node = await gateway({**tables, "redis": {"url": cluster.url, "mirror": {"max_bytes": 0}}})
    await fill(node, ask, say)
    plugin: Any = node.plugins["cache"]
    await plugin._hot.report(plugin._redis)
    primaries = await cluster.primaries()
    for number, primary in enumerate(primaries, 1):
        await primary.ask("CONFIG SET", "maxmemory", f"{100 * number}mb")
    try:
        told = (await command(config, "stats", "--json")).json()
        out = (await command(config, "stats")).out
    finally:
        for primary in primaries:
            await primary.ask("CONFIG SET", "maxmemory", 0)
    whole, each = told["server"], told["server"].pop("primaries")
    addresses = [f"127.0.0.1:{primary.port}" for primary in primaries]
    assert [each[address]["max_memory"] >> 20 for address in addresses] == [100, 200, 300]
    assert len(each) == 3
    for name in ("max_memory", "used_memory", "read_hits", "read_misses", "evicted", "expired"):
        assert whole[name] == sum(one[name] for one in each.values()), name
    assert each[addresses[0]]["policy"] == whole["policy"] == "noeviction"
    assert (told["exact"], told["kinds"]["answers"]["keys"]) == (True, 3)
    assert all(address in out for address in addresses)
    for text in ("of 600.0 MiB (noeviction)", "of 300.0 MiB  ", "api.test/b"):
        assert text in out


async def test_what_is_stored_under_any_name_is_counted_or_left_out(config: Path) -> None:
    assert kind_of(b"gateway:cache:{a}", "gateway") == "entry"
    assert kind_of(b"gateway:cache:{a#01}", "gateway") == "copies"
    assert kind_of(b"gatewayx:cache:{a}", "gateway") == kind_of(b"gateway:hot", "gateway") == ""
    assert kind_in(b"GC\x00\x01") == kind_in(b"") == kind_in(None) == kind_in(b"GC\x02\x09") == "unreadable"


async def test_the_hottest_keys_with_their_copies(
    node: Gateway, config: Path, redis_client: redis.asyncio.Redis, ask: Client, say: Say
) -> None:
    say("/hot", "max-age=60")
    assert "Nothing was read" in (await command(config, "hot")).out
    plugin: Any = node.plugins["cache"]
    for _ in range(2):
        for _ in range(20):
            await ask(node, "/hot?key=letmein")
        await plugin._hot.report(plugin._redis)
    told = (await command(config, "hot", "--json")).json()
    (line,) = told["keys"]
    assert (line["rank"], line["url"], line["hot"], told["shards"]) == (1, "api.test/hot?…", True, 3)
    assert line["copies"] == len(await redis_client.keys("gateway:cache:*")) == 3
    out = (await command(config, "hot")).out
    assert (await command(config, "hot", group=())).out == out, "`gateway hot` is the same"
    assert "3 of 3 keys" in out
    assert "api.test/hot?…" in out
    assert "letmein" not in out


@pytest.mark.parametrize("name", ["stats", "hot", "explain"])
async def test_redis_is_away(tmp_path: Path, name: str) -> None:
    config = write_config(tmp_path, "redis://:letmein@127.0.0.1:1", "http://127.0.0.1:1")
    done = await command(config, name, *(["http://a.test/"] if name == "explain" else []))
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "127.0.0.1:1" in done.err
    assert "letmein" not in done.err


async def test_the_admin_listener_tells_the_same(
    node: Gateway, config: Path, http: aiohttp.ClientSession, redis_client: redis.asyncio.Redis, ask: Client, say: Say
) -> None:
    await fill(node, ask, say)
    base = node.admin_url + "/_gateway/cache"  # type: ignore[attr-defined]
    plugin: Any = node.plugins["cache"]
    await plugin._hot.report(plugin._redis)
    async with http.get(f"{base}/stats") as answer:
        told = await answer.json()
        assert answer.headers["Cache-Control"] == "no-store"
    same = (await command(config, "stats", "--json")).json()
    assert [told[name] for name in ("kinds", "routes", "exact")] == [
        same[name] for name in ("kinds", "routes", "exact")
    ]
    async with http.get(f"{base}/hot?limit=1") as answer:
        assert [line["url"] for line in (await answer.json())["keys"]] == ["api.test/b"]
    async with http.get(f"{base}/explain", params={"url": "http://api.test/b"}) as answer:
        assert (await answer.json())["verdict"].startswith("HIT")
    async with http.post(f"{base}/purge", json={"urls": ["http://api.test/b"]}) as answer:
        assert (answer.status, (await answer.json())["purged"]) == (200, ["http://api.test/b"])
    async with http.get(f"{base}/explain", params={"url": "http://api.test/b"}) as answer:
        assert (await answer.json())["stored"]["purged"] == "yes"
    assert (await ask(node, "/b")).cache == "MISS"


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("hot?limit=0", "limit: expected a whole number from 1"),
        ("hot?limit=%D9%A3", "limit: expected a whole number from 1"),
        ("hot?limits=3", "there is no parameter 'limits'"),
        ("stats?max_keys=1000000000", "max_keys: expected a whole number"),
        ("explain", "which URL?"),
        ("explain?url=ftp://x", "expected a URL"),
        ("explain?url=http://x/&header=a", "there is no parameter 'header'"),
    ],
)
async def test_what_is_wrong_is_told_the_caller(
    node: Gateway, http: aiohttp.ClientSession, path: str, told: str
) -> None:
    async with http.get(f"{node.admin_url}/_gateway/cache/{path}") as answer:  # type: ignore[attr-defined]
        assert answer.status == 400
        assert told in (await answer.json())["detail"]


async def test_a_wrong_purge_is_told_and_purges_nothing(node: Gateway, http: aiohttp.ClientSession) -> None:
    for body in ({}, {"urls": []}, {"route": "all"}, {"routes": ["nothing"]}, {"tags": ["a"], "more": 1}):
        url = f"{node.admin_url}/_gateway/cache/purge"  # type: ignore[attr-defined]
        async with http.post(url, json=body) as answer:
            assert answer.status == 400, body


def test_routes_without_requests_have_no_ratio() -> None:
    class Nobody:
        config = Config.model_validate({"plugins": {"cache": {}}, "routes": [{"name": "all", "plugins": ["cache"]}]})

        def plugins(self, kind: Any) -> list[Any]:
            return [type("Named", (), {"name": "cache"})()]

    nobody: Any = Nobody()
    assert by_route(None, nobody) is None
    (route,) = by_route({"all": {"pass": 3}}, nobody) or []
    assert (route["hit_ratio"], route["pass"]) == (None, 3)


def test_what_one_primary_does_not_limit_has_no_limit() -> None:
    one, other = (
        {"version": "9.1", "max_memory": 5, "evicted": 1},
        {"version": "9.0", "max_memory": None, "evicted": 2},
    )
    assert together([one, other]) == {"version": "9.0, 9.1", "max_memory": None, "evicted": 3}


async def test_a_right_that_is_missing_is_told_and_nothing_made_up(
    tmp_path: Path,
    acl_user: Callable[..., Awaitable[str]],
    redis_client: redis.asyncio.Redis,
) -> None:
    """Of a missing right nobody is to learn that the cache is empty, or what hangs on it was purged."""
    await redis_client.set("gateway:cache:" + "0" * 32, "x", ex=60)
    rules = ["~gateway:*", "+ping", "+client|setname", "+scan", "+dbsize", "+info", "+zrevrange", "+pttl", "+getrange"]
    config = write_config(tmp_path, await acl_user(*rules), "http://127.0.0.1:1")
    refused = await command(config, "stats")
    assert (refused.code, refused.out) == (1, "")
    assert "may not run MEMORY USAGE: grant it +memory|usage; `gateway doctor --acl`" in refused.err
    config = write_config(tmp_path, await acl_user(*rules, "+memory|usage"), "http://127.0.0.1:1")
    assert (await command(config, "stats")).code == 0
