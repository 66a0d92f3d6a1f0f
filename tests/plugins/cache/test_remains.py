"""What the cache serves while Redis is away, for who has chosen `on_redis_failure = "local"`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis.asyncio
from aiohttp import web

from plugins.session import create_session_async
from tests.conftest import StartGateway
from tests.harness import Gateway, UpstreamServer, Valkey, eventually
from tests.plugins.cache.conftest import Client, Clock

Say = Callable[..., None]


def local(url: str, **keys: Any) -> dict[str, Any]:
    return {"redis": {"url": url}, "plugins": {"cache": {"on_redis_failure": "local", **keys}}}


async def lose(valkey: Valkey, *nodes: Gateway) -> None:
    valkey.kill()
    await eventually(lambda: not any(link.up for node in nodes for link in node.worker.redis.links))


async def test_what_is_fresh_is_served_and_what_is_not_comes_from_the_upstream(
    gateway: StartGateway, own_valkey: Valkey, upstream: UpstreamServer, ask: Client, say: Say, clock: Clock
) -> None:
    for path in ("/a", "/b"):
        say(path, "max-age=60", Cache_Tag="t")
    node = await gateway(local(own_valkey.url, stale_if_error=600))
    for _ in range(2):
        assert (await ask(node)).body == b"/a 1"
    clock.stand(node)
    await lose(own_valkey, node)
    got = await ask(node)
    assert (got.cache, got.body, upstream.count("/a")) == ("HIT", b"/a 1", 1)
    assert "detail=redis-down" in got.why
    assert (await ask(node, headers={"Range": "bytes=0-1"})).body == b"/a"
    assert [(await ask(node, "/b")).cache for _ in range(2)] == ["MISS", "MISS"], "nothing is stored without Redis"
    clock.pass_by(61)
    assert (await ask(node)).body == b"/a 2"
    say("/a", status=503)
    got = await ask(node)
    assert (got.cache, got.status, got.body) == ("STALE", 200, b"/a 1")
    clock.pass_by(600)
    assert (await ask(node)).status == 503
    own_valkey.start()
    await eventually(lambda: node.worker.redis.up)
    assert (await ask(node)).status == 503, "what was there is not believed any more"


async def test_an_upstream_that_cannot_be_reached_is_an_error_too(
    gateway: StartGateway, own_valkey: Valkey, ask: Client, say: Say, clock: Clock, upstream: UpstreamServer
) -> None:
    say("/a", "max-age=60")
    node = await gateway(local(own_valkey.url))
    for _ in range(2):
        await ask(node)
    clock.stand(node)
    await lose(own_valkey, node)
    clock.pass_by(61)

    async def hang_up(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    upstream.answer("/a", hang_up)
    assert (await ask(node)).cache == "STALE"


@pytest.mark.parametrize("how", ["heard before", "here, meanwhile"])
async def test_what_was_purged_is_not_served(
    gateway: StartGateway, own_valkey: Valkey, ask: Client, say: Say, how: str
) -> None:
    say("/a", "max-age=60")
    say("/b", "max-age=60")
    node = await gateway(local(own_valkey.url))
    for path in ("/a", "/b", "/a", "/b"):
        await ask(node, path)
    if how == "heard before":
        other = await gateway(local(own_valkey.url))
        heard = node.worker.redis.mirror.invalidations
        assert (await ask(other, method="POST")).status == 200
        await eventually(lambda: node.worker.redis.mirror.invalidations > heard)
        await lose(own_valkey, node)
    else:
        await lose(own_valkey, node)
        assert (await ask(node, method="POST")).status == 200
    assert (await ask(node, "/b")).cache == "HIT"
    assert (await ask(node)).cache == "MISS"


async def test_nobody_gets_anothers_answer(
    gateway: StartGateway, own_valkey: Valkey, upstream: UpstreamServer, ask: Client
) -> None:
    async def mine(request: web.Request) -> web.Response:
        return web.Response(text=request.headers.get("X-User-Id", "nobody"), headers={"Cache-Control": "max-age=60"})

    upstream.answer("/a", mine)
    config = local(own_valkey.url)
    config["plugins"] = {"session": {"required": False, "on_redis_failure": "local"}, **config["plugins"]}
    node = await gateway(config)
    client = redis.asyncio.Redis.from_url(own_valkey.url)
    alice, bob, carol = [
        {"Cookie": f"session={await create_session_async(client, name)}"} for name in ("alice", "bob", "carol")
    ]
    await client.aclose()
    for _ in range(3):
        assert (await ask(node, headers=alice)).body == b"alice"
        assert (await ask(node)).body == b"nobody"
    await eventually(lambda: not node.plugins["session"]._touching)  # type: ignore[attr-defined]
    for who, name in ((alice, b"alice"), (bob, b"bob")):
        assert (await ask(node, headers=who)).body == name
        assert (await ask(node, headers=who)).body == name
    await lose(own_valkey, node)
    got = [await ask(node, headers=headers) for headers in (alice, {}, bob)]
    assert [(one.body, one.cache) for one in got] == [(b"alice", "HIT"), (b"nobody", "HIT"), (b"bob", "HIT")]
    assert (await ask(node, headers=carol)).status == 503, "nobody here knows her session"


async def test_variants_are_told_apart(
    gateway: StartGateway, own_valkey: Valkey, upstream: UpstreamServer, ask: Client
) -> None:
    async def by_language(request: web.Request) -> web.Response:
        fields = {"Cache-Control": "max-age=60", "Vary": "Accept-Language"}
        return web.Response(text=request.headers.get("Accept-Language", ""), headers=fields)

    upstream.answer("/a", by_language)
    node = await gateway(local(own_valkey.url))
    for language in ("de", "en", "de", "en", "de", "en"):
        await ask(node, headers={"Accept-Language": language})
    await lose(own_valkey, node)
    seen = [(await ask(node, headers={"Accept-Language": language})) for language in ("de", "en", "fr")]
    assert [(one.body, one.cache) for one in seen] == [(b"de", "HIT"), (b"en", "HIT"), (b"fr", "MISS")]


async def test_without_a_mirror_there_is_nothing_left(
    gateway: StartGateway, own_valkey: Valkey, ask: Client, say: Say
) -> None:
    say("/a")
    config = local(own_valkey.url)
    config["redis"]["mirror"] = {"max_bytes": 0}
    node = await gateway(config)
    for _ in range(2):
        await ask(node)
    await lose(own_valkey, node)
    assert (await ask(node)).cache == "MISS"


async def test_who_waits_for_another_nodes_fetch_does_not_wait_for_a_redis_that_has_stopped(
    gateway: StartGateway, own_valkey: Valkey, upstream: UpstreamServer, ask: Client, say: Say
) -> None:
    say("/a", "max-age=60", delay=0.3)
    table = {"redis": {"url": own_valkey.url, "timeout": "250ms"}, "plugins": {"cache": {}}}
    nodes = [await gateway(table) for _ in range(2)]
    first = asyncio.ensure_future(ask(nodes[0]))
    await eventually(lambda: upstream.count("/a") == 1)
    second = asyncio.ensure_future(ask(nodes[1]))
    await asyncio.sleep(0.05)
    own_valkey.pause()
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert (await first).status == 200
    assert ((await first).status, (await second).status) == (200, 200)
    # Noticed after at most two time-outs, then its own fetch of 0.3 s; max_silence would be 3 s.
    assert loop.time() - began < 1.5
    assert upstream.count("/a") == 2
