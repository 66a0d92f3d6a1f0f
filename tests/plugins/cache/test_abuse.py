"""What one client, or an odd upstream, could do to others: each of these once could."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate
from typing import Any

import pytest
from aiohttp import web

from tests.conftest import StartGateway
from tests.harness import UpstreamServer, eventually
from tests.plugins.cache.conftest import Client, Clock

CACHE: dict[str, Any] = {"plugins": {"cache": {}}}
SMALL: dict[str, Any] = {"headers": {"Save-Data": "on"}}


def by(name: str) -> dict[str, Any]:
    return {"headers": {"Authorization": name}}


async def test_what_one_client_was_told_that_cannot_be_stored_does_not_keep_others_waiting_or_unstored_for_long(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock
) -> None:
    def answer(request: web.Request) -> web.Response:
        if "Save-Data" in request.headers:
            return web.Response(status=302, headers={"Location": "/lite"})
        return web.Response(text="full", headers={"Cache-Control": "max-age=60"})

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node, **SMALL)
    assert (await ask(node)).body == b"full"
    clock.pass_by(1.1)
    await ask(node)
    assert (await ask(node)).cache == "HIT"


async def test_a_head_is_never_stored_as_a_get_that_had_no_body(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock
) -> None:
    control = "no-store"
    upstream.answer("/a", lambda request: web.Response(text="full", headers={"Cache-Control": control}))
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node)
    clock.pass_by(2)
    control = "max-age=60"
    await ask(node, method="HEAD")
    assert [(await ask(node)).body for _ in range(2)] == [b"full", b"full"]


async def test_one_clients_redirect_leaves_the_stale_answer_that_stands_in_for_errors(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock
) -> None:
    status = 200

    def answer(request: web.Request) -> web.Response:
        if "Save-Data" in request.headers:
            return web.Response(status=302, headers={"Location": "/lite"})
        headers = {"Cache-Control": "max-age=60, stale-if-error=600", "Date": formatdate(clock(), usegmt=True)}
        return web.Response(status=status, text="full", headers=headers)

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node)
    clock.pass_by(61)
    await ask(node, **SMALL)
    status = 503
    assert (await ask(node)).status == 200


async def test_requests_do_not_queue_for_what_is_stale_when_it_comes(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client
) -> None:
    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(0.3)
        return web.Response(text="x", headers={"Cache-Control": "max-age=60", "Age": "60", "ETag": '"a"'})

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    started = time.monotonic()
    await asyncio.gather(*[ask(node) for _ in range(20)])
    assert time.monotonic() - started < 3 * 0.3, "one after the other they would take 6 s"


@pytest.mark.parametrize("more", [{"Cache-Control": "only-if-cached, no-store"}, {"If-Match": '"a"'}])
async def test_only_if_cached_never_reaches_the_upstream(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, more: dict[str, str]
) -> None:
    node = await gateway(CACHE)
    got = await ask(node, headers={"Cache-Control": "only-if-cached"} | more)
    assert got.status == 504
    assert upstream.count("/a") == 0


async def test_a_change_without_an_answer_may_have_been_made(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client
) -> None:
    version = 1

    def answer(request: web.Request) -> web.Response:
        nonlocal version
        if request.method == "POST":
            version += 1
            assert request.transport is not None
            request.transport.abort()
        return web.Response(text=str(version), headers={"Cache-Control": "max-age=60"})

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    await ask(node)
    assert (await ask(node, method="POST", data=b"x")).status == 502
    assert (await ask(node)).body == b"2"


async def test_a_stored_error_is_not_asked_about(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock
) -> None:
    """An upstream that tags its errors with the page's tag would confirm them for ever."""
    there = False

    def answer(request: web.Request) -> web.Response:
        headers = {"ETag": '"a"', "Cache-Control": "max-age=1", "Date": formatdate(clock(), usegmt=True)}
        if there and request.headers.get("If-None-Match") == '"a"':
            return web.Response(status=304, headers=headers)
        return web.Response(status=200 if there else 404, headers=headers)

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    clock.stand(node)
    assert (await ask(node)).status == 404
    there = True
    clock.pass_by(5)
    assert (await ask(node)).status == 200


async def test_one_clients_error_is_not_for_all_who_wait(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client
) -> None:
    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(0.2)
        if "X-Evil" in request.headers:
            return web.Response(status=500)
        return web.Response(text="ok", headers={"Cache-Control": "max-age=60"})

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    evil = asyncio.ensure_future(ask(node, headers={"X-Evil": "1"}))
    await eventually(lambda: upstream.count("/a") == 1)
    got = await asyncio.gather(*[ask(node) for _ in range(5)])
    assert (await evil).status == 500
    assert [answer.status for answer in got] == [200] * 5
    assert upstream.count("/a") == 2


@pytest.mark.parametrize("nodes", [1, 2])
async def test_who_waits_with_credentials_does_not_get_what_nobody_in_particular_was_told(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock, nodes: int
) -> None:
    control, delay = "public, max-age=1", 0.0

    async def answer(request: web.Request) -> web.Response:
        headers = {"Cache-Control": control, "Date": formatdate(clock(), usegmt=True)}
        who = request.headers.get("Authorization", "nobody")
        await asyncio.sleep(delay)
        return web.Response(text=who, headers=headers)

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    other = await gateway(CACHE) if nodes == 2 else node
    clock.stand(node, other)
    for place in (node, other):
        await ask(place, **by("ada"))
    clock.pass_by(500)
    control, delay = "max-age=60", 0.3
    asked = upstream.count("/a")
    first = asyncio.ensure_future(ask(node))
    await eventually(lambda: upstream.count("/a") == asked + 1)
    got = await ask(other, **by("ada"))
    assert (await first).body == b"nobody"
    assert got.body == b"ada"


async def test_what_was_one_clients_own_is_not_for_all_after_a_304(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock
) -> None:
    def answer(request: web.Request) -> web.Response:
        headers = {"ETag": '"a"', "Date": formatdate(clock(), usegmt=True)}
        if request.headers.get("If-None-Match"):
            return web.Response(status=304, headers=headers | {"Cache-Control": "public, max-age=60"})
        control = {"Cache-Control": 'max-age=1, private="X-User"', "X-User": request.headers["Authorization"]}
        return web.Response(text="same", headers=headers | control)

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node, **by("ada"))
    clock.pass_by(5)
    await ask(node, **by("ada"))
    got = await ask(node, **by("bob"))
    assert got.headers.get("X-User") != "ada"
