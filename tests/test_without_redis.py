"""A Redis that stops, is slow, or has too much to do: how long requests wait for it, and what is told of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import Any

import aiohttp
import aiohttp.web
import pytest
import redis.asyncio

from gateway.plugin import LATER, Answer, Handler, Later, Plugin, Redis, Request, Response
from plugins.session import create_session_async
from tests.conftest import StartGateway
from tests.harness import Gateway, UpstreamServer, Valkey, eventually
from tests.relay import Relay

TIMEOUT = 0.25
# What a busy machine may add to it; two time-outs one after the other would be more.
SLACK = 0.2
SLOWEST = TIMEOUT + SLACK

KINDS = ("does not answer", "is down", "cannot connect", "is up")
FULL: dict[str, Any] = {
    "rate_limit": {"limits": ["1000/minute"], "by": "user"},
    "token_blacklist": {},
    "session": {"required": False},
    "cache": {"ttl": 60},
}


class AsksOnAndOn(Plugin):
    """One question after the other, each of which depends on the one before."""

    async def __call__(self, request: Request, call_next: Handler) -> Response:
        for number in range(5):
            await request.redis.ask("GET", f"k{number}")
        return await call_next(request)


class AsksWhenItIsItsTurn(Plugin):
    def ask(self, request: Request, redis: Redis) -> Answer | Later:
        return LATER if request.early else redis.ask("GET", "k")

    def check(self, request: Request, reply: Any) -> Response | None:
        return None


def use(name: str, **keys: Any) -> dict[str, Any]:
    return {"use": f"tests.test_without_redis:{name}", **keys}


def table(url: str, plugins: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"redis": {"url": url, "timeout": TIMEOUT, "backoff_max": "50ms", **keys}, "plugins": plugins}


async def timed(http: aiohttp.ClientSession, url: str, **options: Any) -> tuple[int, float]:
    """Status and seconds."""
    began = time.monotonic()
    async with http.request(options.pop("method", "GET"), url, **options) as response:
        await response.read()
        return response.status, time.monotonic() - began


def decided(node: Gateway) -> dict[tuple[str, str], float]:
    """How often each plugin has decided what without Redis."""
    family = node.worker.metrics.snapshot().get("gateway_decided_without_redis_total")
    if family is None:
        return {}
    plugin, decision = family["labels"].index("plugin"), family["labels"].index("decision")
    return {(labels[plugin], labels[decision]): value for labels, value in family["series"]}


# -- a Redis that has stopped --------------------------------------------------------------------------

STOPPED: dict[str, tuple[dict[str, Any], int, tuple[str, str]]] = {
    "rate_limit": ({"limits": ["1000/minute"]}, 200, ("rate_limit", "local")),
    "token_blacklist": ({}, 503, ("token_blacklist", "refuse")),
    "session": ({}, 503, ("session", "refuse")),
    "cache": ({"ttl": 60}, 200, ("cache", "pass")),
}


@pytest.mark.parametrize("mirror", ["1 MiB", 0])
@pytest.mark.parametrize("name", STOPPED)
async def test_each_plugin_waits_once_and_then_nobody_does(
    gateway: StartGateway, http: aiohttp.ClientSession, own_valkey: Valkey, name: str, mirror: Any
) -> None:
    keys, status, told = STOPPED[name]
    node = await gateway(table(own_valkey.url, {name: keys}, mirror={"max_bytes": mirror}))
    headers = {"Authorization": "Bearer t", "Cookie": "session=abc"}
    own_valkey.pause()
    got = await asyncio.gather(*[timed(http, node.url + f"/{number}", headers=headers) for number in range(10)])
    assert {one for one, _ in got} == {status}
    assert max(seconds for _, seconds in got) < SLOWEST
    # The link is stalled by now, not yet down.
    got = [await timed(http, node.url + f"/{number}", headers=headers) for number in range(10, 20)]
    assert {one for one, _ in got} == {status}
    assert max(seconds for _, seconds in got) < 0.1
    assert decided(node) == {told: 20}
    own_valkey.resume()
    await eventually(lambda: not any(link.stalled for link in node.worker.redis.links))
    await timed(http, node.url + "/after", headers=headers)
    assert decided(node) == {told: 20}


@pytest.mark.parametrize("mirror", ["1 MiB", 0])
async def test_a_chain_waits_no_longer_than_one_plugin(
    gateway: StartGateway, http: aiohttp.ClientSession, own_valkey: Valkey, mirror: Any
) -> None:
    """Limits by the session's user, the user's cached answer, locks, generations: each depends on what came before."""
    plugins = {name: {**keys, "on_redis_failure": "pass"} for name, keys in FULL.items()}
    node = await gateway(table(own_valkey.url, plugins, mirror={"max_bytes": mirror}))
    client = redis.asyncio.Redis.from_url(own_valkey.url)
    sessions = [await create_session_async(client, f"u{number}") for number in range(5)]
    await client.aclose()
    own_valkey.pause()
    waiting = [
        timed(http, node.url + f"/{number}", headers={"Cookie": f"session={session}"}, method=method)
        for number, session in enumerate(sessions)
        for method in ("GET", "POST")
    ]
    got = await asyncio.gather(*waiting)
    assert {one for one, _ in got} == {200}
    assert max(seconds for _, seconds in got) < SLOWEST


async def test_a_redis_that_stops_during_a_fetch_costs_one_time_out_and_a_fetch(
    gateway: StartGateway, http: aiohttp.ClientSession, own_valkey: Valkey, upstream: UpstreamServer
) -> None:
    async def slow(request: Any) -> aiohttp.web.Response:
        await asyncio.sleep(0.2)
        return aiohttp.web.Response(text="x", headers={"Cache-Control": "max-age=60", "Cache-Tag": "a, b"})

    upstream.answer("/a", slow)
    node = await gateway(table(own_valkey.url, {"cache": {}}))
    asking = [asyncio.ensure_future(timed(http, node.url + "/a")) for _ in range(5)]
    await eventually(lambda: upstream.count("/a") == 1)
    own_valkey.pause()
    got = await asyncio.gather(*asking)
    assert {one for one, _ in got} == {200}
    # Who waited for this fetch cannot be told whether a purge has come meanwhile: they fetch it themselves.
    assert max(seconds for _, seconds in got) < 0.2 + TIMEOUT + 0.2 + SLACK


# -- a slow one ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("delay", "status"), [(0.01, 200), (0.1, 200), (1.0, 503)])
async def test_a_slow_redis(
    gateway: StartGateway, http: aiohttp.ClientSession, relay: Relay, delay: float, status: int
) -> None:
    node = await gateway(table(relay.url, {"token_blacklist": {}}))
    relay.delay = delay
    headers = [{"Authorization": f"Bearer {number}"} for number in range(20)]
    got = await asyncio.gather(*[timed(http, node.url, headers=one) for one in headers])
    assert {one for one, _ in got} == {status}
    assert max(seconds for _, seconds in got) < SLOWEST
    if status == 503:
        # From then on nobody waits, however long it stays so.
        for one in range(30):
            answer, seconds = await timed(http, node.url, headers={"Authorization": f"Bearer x{one}"})
            assert (answer, seconds < 0.1) == (503, True)
            await asyncio.sleep(0.05)
        relay.delay = 0
        await eventually(lambda: not node.worker.redis.links[0].stalled)
        assert (await timed(http, node.url, headers={"Authorization": "Bearer y"}))[0] == 200


@pytest.mark.parametrize("mirror", ["1 MiB", 0])
@pytest.mark.parametrize("name", ["on and on", "its turn", "full"])
async def test_all_that_a_request_waits_for_counts_together(
    gateway: StartGateway, http: aiohttp.ClientSession, relay: Relay, name: str, mirror: Any
) -> None:
    """Each reply comes in time, but all of them together would take much longer."""
    plugins = {
        "on and on": {"a": use("AsksOnAndOn", on_redis_failure="pass")},
        "its turn": {name: use("AsksWhenItIsItsTurn", on_redis_failure="pass") for name in "abc"},
        "full": FULL,
    }[name]
    node = await gateway(table(relay.url, plugins, mirror={"max_bytes": mirror}))
    client = redis.asyncio.Redis.from_url(relay.url)
    session = await create_session_async(client, "alice")
    await client.aclose()
    relay.delay = 0.15
    got = await asyncio.gather(
        *[timed(http, node.url + f"/{number}", headers={"Cookie": f"session={session}"}) for number in range(5)]
    )
    assert {one for one, _ in got} == {200}
    assert max(seconds for _, seconds in got) < SLOWEST
    assert decided(node)


async def test_who_is_in_no_hurry_is_not_cut_short(
    gateway: StartGateway, http: aiohttp.ClientSession, relay: Relay, upstream: UpstreamServer
) -> None:
    """A slow Redis makes an answer's way into the cache longer than its client waits: it gets there all the same."""
    upstream.answer("/a", lambda _: aiohttp.web.Response(text="x", headers={"Cache-Control": "max-age=60"}))
    node = await gateway(table(relay.url, {"cache": {}}))
    relay.delay = 0.06

    async def hit() -> bool:
        async with http.get(node.url + "/a") as response:
            return response.headers.get("X-Cache") == "HIT"

    await eventually(hit)


# -- too much to do ------------------------------------------------------------------------------------


async def test_past_a_full_queue_requests_fail_at_once(
    gateway: StartGateway, http: aiohttp.ClientSession, relay: Relay
) -> None:
    node = await gateway(table(relay.url, {"token_blacklist": {}}, max_queue=10, mirror={"max_bytes": 0}))
    relay.stall()
    headers = [{"Authorization": f"Bearer {number}"} for number in range(40)]
    asking = [asyncio.ensure_future(timed(http, node.url, headers=one)) for one in headers]
    await eventually(lambda: sum(one.done() for one in asking) == 30)
    fast = [one.result() for one in asking if one.done()]
    assert {status for status, _ in fast} == {503}
    assert max(seconds for _, seconds in fast) < TIMEOUT, "they have not waited for Redis"
    relay.heal()
    assert Counter(status for status, _ in await asyncio.gather(*asking)) == {200: 10, 503: 30}
    assert (await timed(http, node.url, headers={"Authorization": "Bearer x"}))[0] == 200


# -- what is told --------------------------------------------------------------------------------------


async def test_one_line_for_each_change_and_none_for_a_request(
    gateway: StartGateway, http: aiohttp.ClientSession, own_valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    plugins = {name: {**keys, "on_redis_failure": "pass"} for name, keys in FULL.items()}
    node = await gateway(table(own_valkey.url, plugins))
    client = redis.asyncio.Redis.from_url(own_valkey.url)
    session = await create_session_async(client, "alice")
    await client.aclose()
    headers = {"Cookie": f"session={session}"}
    caplog.set_level(logging.INFO)

    async def ask_a_few() -> None:
        for number in range(20):
            for method in ("GET", "POST"):
                assert (await timed(http, f"{node.url}/{number}", headers=headers, method=method))[0] == 200

    await ask_a_few()
    caplog.clear()
    own_valkey.pause()
    await ask_a_few()
    own_valkey.resume()
    await eventually(lambda: not any(link.stalled for link in node.worker.redis.links))
    own_valkey.kill()
    await eventually(lambda: not node.worker.redis.up)
    await ask_a_few()
    own_valkey.start()
    await eventually(lambda: node.worker.redis.up)
    await ask_a_few()
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    kinds = Counter(kind for line in lines for kind in KINDS if line.startswith("redis: ") and kind in line)
    assert kinds["is down"] == kinds["is up"] == 2, "one for each link"
    assert kinds["does not answer"] <= 2
    assert kinds["cannot connect"] <= 2
    other = [line for line in lines if not line.startswith("redis: ")]
    assert len(other) <= 3, "what could not be stored, purged, moved on: once each"


async def test_a_redis_that_refuses_is_told_of_once(
    gateway: StartGateway, http: aiohttp.ClientSession, own_valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    node = await gateway(table(own_valkey.url, {"rate_limit": {"limits": ["5/hour"]}}))
    client = redis.asyncio.Redis.from_url(own_valkey.url)
    await client.config_set("maxmemory", "1")
    await client.config_set("maxmemory-policy", "noeviction")
    got = [(await timed(http, node.url))[0] for _ in range(10)]
    assert got == [200] * 5 + [429] * 5, "the limit holds all the same"
    assert sum("refused its question" in record.getMessage() for record in caplog.records) == 1
    await client.aclose()
