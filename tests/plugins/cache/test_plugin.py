"""What a client sees of the cache."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis.asyncio
from aiohttp import web

from tests.conftest import StartGateway
from tests.harness import UpstreamServer, Valkey, eventually
from tests.plugins.cache.conftest import Client, Clock

Say = Callable[..., None]
CACHE: dict[str, Any] = {"plugins": {"cache": {}}}


def with_cache(**keys: Any) -> dict[str, Any]:
    return {"plugins": {"cache": keys}}


async def test_a_second_request_is_answered_from_the_store(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say, clock: Clock
) -> None:
    say("/a", "max-age=60", ETag='"v1"', X_Own="yes", X_Cache="HIT from the moon", Age="7")
    node, other = await gateway(CACHE), await gateway(CACHE)
    clock.stand(node, other)
    first = await ask(node)
    assert (first.cache, first.why) == ("MISS", "gateway; fwd=uri-miss; fwd-status=200; stored")
    clock.pass_by(2)
    for place in (node, other, other):
        hit = await ask(place)
        assert (hit.status, hit.cache, hit.body) == (200, "HIT", b"/a 1")
        assert (hit.headers["ETag"], hit.headers["X-Own"], hit.headers["Age"]) == ('"v1"', "yes", "9")
        assert hit.headers.getall("X-Cache") == ["HIT"]  # type: ignore[attr-defined]
        assert hit.why in ("gateway; hit; ttl=51", "gateway; hit; ttl=50")
    assert upstream.count("/a") == 1


async def test_a_warm_hit_asks_redis_nothing(gateway: StartGateway, ask: Client, say: Say) -> None:
    say("/a", "max-age=60", Cache_Tag="x y")
    say("/b", "max-age=60", Vary="Accept-Encoding")
    node = await gateway(CACHE)
    for path in ("/a", "/b"):
        await ask(node, path)
        await ask(node, path)
        asked = node.worker.redis.asked
        assert (await ask(node, path)).cache == "HIT"
        assert node.worker.redis.asked == asked


async def test_head_is_answered_from_a_stored_get(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say
) -> None:
    say("/a")
    node = await gateway(CACHE)
    assert (await ask(node, method="HEAD")).cache == "MISS"
    await ask(node)
    head = await ask(node, method="HEAD")
    assert (head.cache, head.headers["Content-Length"], head.body) == ("HIT", "4", b"")
    assert [request.method for request in upstream.requests] == ["HEAD", "GET"]


async def test_an_entry_ends_with_its_freshness(gateway: StartGateway, ask: Client, say: Say, clock: Clock) -> None:
    say("/a", "max-age=60")
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node)
    clock.pass_by(59)
    assert (await ask(node)).body == b"/a 1"
    clock.pass_by(1)
    again = await ask(node)
    assert (again.cache, again.body) == ("MISS", b"/a 2")
    assert "fwd=stale" in again.why
    assert (await ask(node)).body == b"/a 2"


@pytest.mark.parametrize(
    ("control", "fields"),
    [
        ("no-store", {}),
        ("private, max-age=60", {}),
        ("no-cache", {}),
        (None, {}),
        ("max-age=60", {"Set_Cookie": "a=b"}),
        ("max-age=60", {"Vary": "*"}),
    ],
)
async def test_what_must_not_be_stored_is_not(
    gateway: StartGateway, ask: Client, say: Say, control: str | None, fields: dict[str, str]
) -> None:
    say("/a", control, **fields)
    node = await gateway(CACHE)
    assert [(await ask(node)).body for _ in range(3)] == [b"/a 1", b"/a 2", b"/a 3"]
    assert (await ask(node, headers={"Cache-Control": "only-if-cached"})).status == 504
    last = await ask(node)
    assert last.cache == "MISS"
    assert "not-cacheable" in last.why


async def test_ttl_keeps_what_says_nothing(gateway: StartGateway, ask: Client, say: Say, clock: Clock) -> None:
    say("/a", None)
    say("/missing", None, status=404)
    node = await gateway(with_cache(ttl="1m", ttl_by_status={404: "5s"}))
    clock.stand(node)
    for path, life in (("/a", 60), ("/missing", 5)):
        await ask(node, path)
        clock.pass_by(life - 1)
        assert (await ask(node, path)).cache == "HIT"
        clock.pass_by(1)
        assert (await ask(node, path)).cache == "MISS"


async def test_conditional_requests_are_answered_from_the_store(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say
) -> None:
    say("/a", "max-age=60", ETag='W/"v1"', Last_Modified="Sun, 09 Sep 2001 01:46:40 GMT")
    node = await gateway(CACHE)
    # The very first one too: what is fetched is whole, and is compared here.
    for headers in (
        {"If-None-Match": '"x", "v1"'},
        {"If-None-Match": '"v1"'},
        {"If-Modified-Since": "Mon, 10 Sep 2001 00:00:00 GMT"},
    ):
        got = await ask(node, headers=headers)
        assert (got.status, got.body, got.headers["ETag"]) == (304, b"", 'W/"v1"')
        assert "Content-Type" not in got.headers
    assert (await ask(node, headers={"If-None-Match": '"v2"'})).status == 200
    assert len(upstream.requests) == 1
    assert "If-None-Match" not in upstream.requests[0].headers


async def test_a_client_may_insist_on_a_new_answer_or_on_a_stored_one(
    gateway: StartGateway, ask: Client, say: Say
) -> None:
    say("/a")
    node = await gateway(CACHE)
    missing = await ask(node, headers={"Cache-Control": "only-if-cached"})
    assert (missing.status, missing.why) == (504, "gateway; fwd=request; detail=only-if-cached")
    await ask(node)
    new = await ask(node, headers={"Cache-Control": "no-cache"})
    assert (new.cache, new.body) == ("MISS", b"/a 2")
    assert "fwd=request" in new.why
    assert (await ask(node)).body == b"/a 2"
    assert (await ask(node, headers={"Pragma": "no-cache"})).body == b"/a 3"
    assert (await ask(node, headers={"Cache-Control": "max-age=0"})).body == b"/a 4"
    assert (await ask(node, headers={"Cache-Control": "only-if-cached"})).body == b"/a 4"
    unseen = await ask(node, headers={"Cache-Control": "no-store"})
    assert (unseen.cache, unseen.body) == ("BYPASS", b"/a 5")
    assert (await ask(node)).body == b"/a 4"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"method": "POST"}, "fwd=method"),
        ({"method": "OPTIONS"}, "fwd=method"),
        ({"headers": {"If-Match": '"a"'}}, "fwd=bypass; detail=precondition"),
        ({"data": b"fat"}, "fwd=bypass; detail=body"),
    ],
)
async def test_what_is_none_of_its_business_passes(
    gateway: StartGateway, ask: Client, say: Say, options: dict[str, Any], why: str
) -> None:
    say("/a")
    node = await gateway(CACHE)
    await ask(node)
    got = await ask(node, **options)
    assert (got.cache, got.body, got.why) == ("BYPASS", b"/a 2", f"gateway; {why}")


async def test_variants_are_kept_side_by_side(gateway: StartGateway, upstream: UpstreamServer, ask: Client) -> None:
    async def answer(request: web.Request) -> web.Response:
        headers = {"Cache-Control": "max-age=60", "Vary": "Accept-Language"}
        return web.Response(text=request.headers.get("Accept-Language", "none"), headers=headers)

    upstream.answer("/a", answer)
    node, other = await gateway(CACHE), await gateway(CACHE)
    for place, expected in ((node, "MISS"), (other, "HIT"), (node, "HIT")):
        for language in ("de", "en", None):
            headers = {"Accept-Language": language} if language else {}
            got = await ask(place, headers=headers)
            assert (got.cache, got.body.decode()) == (expected, language or "none")
    assert (await ask(node, headers={"Accept-Language": "DE "})).cache == "HIT"
    assert "fwd=vary-miss" in (await ask(node, headers={"Accept-Language": "fr"})).why


async def test_a_field_named_by_connection_does_not_fetch_for_those_without_it(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client
) -> None:
    """It is taken away on the way to the upstream: the answer is one for a request without the field."""

    async def answer(request: web.Request) -> web.Response:
        headers = {"Cache-Control": "max-age=60", "Vary": "X-Version"}
        return web.Response(text=request.headers.get("X-Version", "none"), headers=headers)

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    poisoned = await ask(node, headers={"Connection": "X-Version", "X-Version": "2"})
    assert poisoned.body == b"none"
    assert (await ask(node, headers={"X-Version": "2"})).body == b"2"
    assert (await ask(node)).body == b"none"


async def test_an_unsafe_request_purges_its_url(gateway: StartGateway, ask: Client, say: Say) -> None:
    """RFC 9111, section 4.4: whoever changes something sees the change, on every node."""
    say("/a?id=1")
    say("/a")
    node, other = await gateway(CACHE), await gateway(CACHE)
    for number, method in enumerate(("POST", "PUT", "PATCH", "DELETE")):
        await ask(node)
        await ask(other)
        assert (await ask(other)).cache == "HIT"
        assert (await ask(node, method=method)).status == 200
        assert (await ask(node)).cache == "MISS", number
        assert (await ask(other)).body == (await ask(node)).body


async def test_a_refused_change_purges_nothing(gateway: StartGateway, upstream: UpstreamServer, ask: Client) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=200 if request.method == "GET" else 403, headers={"Cache-Control": "max-age=60"})

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    await ask(node)
    await ask(node, method="DELETE")
    assert (await ask(node)).cache == "HIT"


async def test_stale_while_revalidate(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say, clock: Clock
) -> None:
    say("/a", "max-age=10, stale-while-revalidate=60")
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node)
    clock.pass_by(20)
    stale = await ask(node)
    assert (stale.cache, stale.body, stale.headers["Age"]) == ("STALE", b"/a 1", "20")

    async def refreshed() -> bool:
        return (await ask(node)).body == b"/a 2"

    await eventually(refreshed)
    assert (await ask(node)).cache == "HIT"
    assert upstream.count("/a") == 2


async def test_stale_if_error(gateway: StartGateway, ask: Client, say: Say, clock: Clock) -> None:
    say("/a", "max-age=10")
    node = await gateway(with_cache(stale_if_error="1m"))
    clock.stand(node)
    await ask(node)
    clock.pass_by(30)
    say("/a", "max-age=10", status=503)
    stale = await ask(node)
    assert (stale.status, stale.cache, stale.body) == (200, "STALE", b"/a 1")
    assert stale.why == "gateway; fwd=stale; detail=stale-if-error"
    clock.pass_by(60)
    assert (await ask(node)).status == 503


async def test_a_long_or_endless_answer_is_not_held_back(
    gateway: StartGateway, upstream: UpstreamServer, http: Any, ask: Client
) -> None:
    release = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        headers = {"Cache-Control": "max-age=60", "Content-Type": "text/event-stream"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await release.wait()
        return response

    async def long(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Cache-Control": "max-age=60"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        for number in range(20):
            await response.write(bytes([number]) * 1000)
        return response

    upstream.answer("/events", endless)
    upstream.answer("/long", long)
    node = await gateway(with_cache(max_body=10_000))
    async with http.get(node.url + "/events") as response:
        assert await asyncio.wait_for(response.content.readany(), 2) == b"data: 1\n\n"
    release.set()
    for _ in range(2):
        got = await ask(node, "/long")
        assert got.cache == "MISS"
        assert got.body == b"".join([bytes([number]) * 1000 for number in range(20)])


async def test_an_answer_that_breaks_off_is_neither_stored_nor_passed_on_as_whole(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say
) -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Cache-Control": "max-age=60", "Content-Length": "60000"})
        await response.prepare(request)
        await response.write(b"x" * 40_000)
        assert request.transport is not None
        request.transport.abort()
        return response

    upstream.answer("/a", broken)
    node = await gateway(CACHE)
    got = await ask(node)
    assert (got.status, got.headers["Content-Type"]) == (502, "application/problem+json")
    say("/a")
    assert (await ask(node)).status == 200


async def test_garbage_in_redis_is_a_miss_and_is_overwritten(
    gateway: StartGateway, redis_client: redis.asyncio.Redis, ask: Client, say: Say
) -> None:
    say("/a", "max-age=60", Cache_Tag="t")
    node = await gateway(CACHE)
    await ask(node)
    keys = await redis_client.keys("gateway:*")
    assert {key.split(b":")[1] for key in keys} == {b"cache", b"gen", b"nodes"}
    for key in keys:
        await redis_client.set(key, b"garbage" * 20)
    assert (await ask(node)).status == 200
    assert (await ask(node)).cache == "HIT"
    for key in keys:
        await redis_client.delete(key)
        await redis_client.lpush(key, "a list")
    assert (await ask(node)).status == 200
    assert (await ask(node)).cache == "HIT"


async def test_every_key_ends(gateway: StartGateway, redis_client: redis.asyncio.Redis, ask: Client, say: Say) -> None:
    say("/a", "max-age=60", Cache_Tag="t", Vary="Accept")
    say("/b", "no-store")
    node = await gateway(CACHE)
    await ask(node)
    await ask(node, "/b")
    keys = await redis_client.keys("*")
    assert len(keys) >= 6
    for key in keys:
        assert await redis_client.pttl(key) > 0, key


async def test_while_redis_is_down_requests_pass(
    gateway: StartGateway, own_valkey: Valkey, upstream: UpstreamServer, ask: Client, say: Say
) -> None:
    say("/a")
    node = await gateway({**CACHE, "redis": {"url": own_valkey.url, "timeout": 0.1}})
    await ask(node)
    assert (await ask(node)).cache == "HIT"
    own_valkey.kill()
    assert [(await ask(node)).status for _ in range(3)] == [200] * 3
    assert (await ask(node, method="POST")).status == 200
    own_valkey.start()

    async def hit() -> bool:
        return (await ask(node)).cache == "HIT"

    await eventually(hit)


@pytest.mark.parametrize("tags", [{}, {"Cache_Tag": "t"}])
async def test_a_redis_that_is_lost_during_a_fetch_costs_the_answer_nothing(
    gateway: StartGateway,
    own_valkey: Valkey,
    upstream: UpstreamServer,
    ask: Client,
    say: Say,
    tags: dict[str, str],
) -> None:
    say("/a", "max-age=60", delay=0.2, **tags)
    node = await gateway({**CACHE, "redis": {"url": own_valkey.url, "timeout": 0.1}})
    asking = [asyncio.ensure_future(ask(node)) for _ in range(5)]
    await eventually(lambda: upstream.count("/a") == 1)
    own_valkey.kill()
    got = await asyncio.gather(*asking)
    assert [answer.status for answer in got] == [200] * 5


async def test_without_a_mirror_everything_works_from_redis(
    gateway: StartGateway, redis_client: redis.asyncio.Redis, ask: Client, say: Say
) -> None:
    say("/a", "max-age=60", Cache_Tag="t")
    plain = {**CACHE, "redis": {"mirror": {"max_bytes": 0}}}
    node, other = await gateway(plain), await gateway(plain)
    await ask(node)
    assert [(await ask(place)).cache for place in (node, other, other)] == ["HIT"] * 3
    await ask(node, method="POST")
    assert (await ask(node)).cache == "MISS"

    async def followed() -> bool:
        return (await ask(other)).body == b"/a 3"

    await eventually(followed, within=0.05)


async def test_a_plugin_that_learns_late_who_it_is_gets_that_ones_answer(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, tmp_path: Any
) -> None:
    """A key that was formed before the identity was known is not used."""
    (tmp_path / "late_identity.py").write_text(
        "from gateway.plugin import Plugin\n"
        "class Late(Plugin):\n"
        "    async def __call__(self, request, call_next):\n"
        "        request.identity = request.headers.get('X-Who')\n"
        "        return await call_next(request)\n"
    )

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=request.headers.get("X-Who", "nobody"), headers={"Cache-Control": "max-age=60"})

    upstream.answer("/a", answer)
    node = await gateway({"plugins": {"late": {"use": "late_identity:Late"}, "cache": {}}}, folder=tmp_path)
    for expected in ("MISS", "HIT"):
        for who in ("ada", "bob", None):
            got = await ask(node, headers={"X-Who": who} if who else {})
            assert (got.cache, got.body.decode()) == (expected, who or "nobody")


async def test_scope_user_keeps_nothing_for_nobody(gateway: StartGateway, ask: Client, say: Say) -> None:
    say("/a")
    node = await gateway(with_cache(scope="user"))
    nobody = await ask(node)
    assert (nobody.cache, nobody.why) == ("BYPASS", "gateway; fwd=bypass; detail=no-identity")
    who = {"Authorization": "Basic YTpi"}
    assert [(await ask(node, headers=who)).cache for _ in range(2)] == ["MISS", "HIT"]


async def test_scope_shared_keeps_one_copy_of_what_may_be_shared(gateway: StartGateway, ask: Client, say: Say) -> None:
    say("/a", "max-age=60")
    say("/b", "public, max-age=60")
    node = await gateway(with_cache(scope="shared"))
    ada, bob = {"Authorization": "Basic YTpi"}, {"Authorization": "Basic YzpK"}
    assert [(await ask(node, headers=who)).cache for who in (ada, bob)] == ["MISS", "MISS"]
    assert [(await ask(node, "/b", headers=who)).cache for who in (ada, bob)] == ["MISS", "HIT"]


async def test_two_caches_in_one_chain_do_not_wait_for_each_other(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say
) -> None:
    say("/a")
    node = await gateway({"plugins": {"cache": {}, "inner": {"use": "cache"}}})
    got = await asyncio.wait_for(ask(node), 2)
    assert got.why == ("gateway; fwd=uri-miss; fwd-status=200; stored, gateway; fwd=uri-miss; fwd-status=200; stored")
    assert (await ask(node)).cache == "HIT"


async def test_the_outcome_in_the_log_is_the_caches(gateway: StartGateway, ask: Client, say: Say) -> None:
    outcomes: list[str] = []

    class Observer:
        def record(self, request: Any, status: int, size: int, outcome: str) -> None:
            outcomes.append(outcome)

        def record_unparsed(self, client: str, status: int, outcome: str) -> None: ...

    say("/a")
    node = await gateway(CACHE, observer=Observer())
    for method in ("GET", "GET", "POST"):
        await ask(node, method=method)
    await eventually(lambda: len(outcomes) == 3)
    assert outcomes == ["miss", "hit", "pass"]


async def test_a_change_of_protocol_is_none_of_its_business(
    gateway: StartGateway, upstream: UpstreamServer, http: Any, ask: Client, say: Say
) -> None:
    """What the URL answers to a plain request must not be what a WebSocket's client gets."""

    async def talk(request: web.Request) -> web.StreamResponse:
        if "Upgrade" not in request.headers:
            return web.Response(text="use a WebSocket", headers={"Cache-Control": "max-age=60"})
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str("hello")
        await socket.close()
        return socket

    upstream.answer("/a", talk)
    node = await gateway(CACHE)
    for _ in range(2):
        assert (await ask(node)).body == b"use a WebSocket"
        async with http.ws_connect(node.url + "/a", headers={"Host": "api.test"}) as socket:
            assert await socket.receive_str() == "hello"
    assert (await ask(node)).cache == "HIT"
