"""What is stored in gzip, as clients see it."""

from __future__ import annotations

import asyncio
import gzip
import json
from email.utils import formatdate
from typing import Any

import pytest
from aiohttp import web
from redis.asyncio import Redis

from tests.conftest import StartGateway
from tests.harness import UpstreamServer
from tests.plugins.cache.conftest import Client, Clock, Got

BODY = json.dumps([{"id": number, "name": f"product {number}"} for number in range(2000)]).encode()
CONFIG: dict[str, Any] = {"plugins": {"cache": {"compress_over": 1000}}}
GZIP = {"Accept-Encoding": "gzip"}
PLAIN = {"Accept-Encoding": "identity"}


def answers(upstream: UpstreamServer, clock: Clock | None = None, control: str = "max-age=60", **more: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.method == "PUT":
            good = request.headers.get("If-Match") == '"v1"'
            return web.Response(status=204 if good else 412)
        headers = {
            "ETag": '"v1"',
            "Cache-Control": control,
            "Content-Type": "application/json",
            "Repr-Digest": "x",
            **more,
        }
        if clock is not None:
            headers["Date"] = formatdate(clock(), usegmt=True)
        if request.headers.get("If-None-Match") == '"v1"':
            return web.Response(status=304, headers=headers)
        return web.Response(body=BODY, headers=headers)

    upstream.answer("/a", answer)


def checked(got: Got, *, zipped: bool) -> None:
    assert got.status == 200
    assert got.headers["Vary"] == "Accept-Encoding"
    assert got.headers["ETag"] == ('"v1;gzip"' if zipped else '"v1"')
    assert got.headers.get("Content-Encoding") == ("gzip" if zipped else None)
    assert int(got.headers["Content-Length"]) == len(got.body)
    assert (gzip.decompress(got.body) if zipped else got.body) == BODY


async def test_stored_once_served_as_the_client_accepts(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, redis_client: Redis
) -> None:
    answers(upstream)
    nodes = [await gateway(CONFIG), await gateway(CONFIG)]
    assert (await ask(nodes[0], headers=PLAIN)).body == BODY
    for _ in range(3):
        for node in nodes:
            checked(await ask(node, headers=GZIP), zipped=True)
            checked(await ask(node, headers=PLAIN), zipped=False)
            checked(await ask(node, headers=GZIP | {"Cache-Control": "no-transform"}), zipped=False)
    assert upstream.count("/a") == 1
    sizes = [await redis_client.strlen(key) async for key in redis_client.scan_iter("*:cache:*")]
    assert max(sizes) < len(BODY) / 3


async def test_conditions_are_judged_by_the_representation(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client
) -> None:
    answers(upstream)
    node = await gateway(CONFIG)
    await ask(node)
    for accepts, etag, status in [
        (GZIP, '"v1;gzip"', 304),
        (PLAIN, '"v1"', 304),
        (GZIP, '"v1"', 200),
        (PLAIN, '"v1;gzip"', 200),
    ]:
        got = await ask(node, headers=accepts | {"If-None-Match": etag})
        assert got.status == status
        if status == 304:
            assert got.headers["ETag"] == etag
            assert got.headers["Vary"] == "Accept-Encoding"
    assert upstream.count("/a") == 1


async def test_head(gateway: StartGateway, upstream: UpstreamServer, ask: Client) -> None:
    answers(upstream)
    node = await gateway(CONFIG)
    await ask(node)
    zipped = await ask(node, headers=GZIP)
    assert (await ask(node, method="HEAD", headers=GZIP)).headers["Content-Length"] == str(len(zipped.body))
    assert (await ask(node, method="HEAD", headers=PLAIN)).headers["Content-Length"] == str(len(BODY))
    assert upstream.count("/a") == 1


async def test_who_edits_names_the_version_he_has(gateway: StartGateway, upstream: UpstreamServer, ask: Client) -> None:
    answers(upstream)
    node = await gateway(CONFIG)
    await ask(node)
    etag = (await ask(node, headers=GZIP)).headers["ETag"]
    assert (await ask(node, method="PUT", headers={"If-Match": etag})).status == 204
    assert (await ask(node, method="PUT", headers={"If-Match": '"v0;gzip"'})).status == 412


async def test_revalidated(gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock) -> None:
    answers(upstream, clock)
    node = await gateway(CONFIG)
    clock.stand(node)
    await ask(node, headers=GZIP)
    clock.pass_by(61)
    got = await ask(node, headers=GZIP)
    assert "fwd-status=304" in got.why
    assert (gzip.decompress(got.body) if "Content-Encoding" in got.headers else got.body) == BODY
    checked(await ask(node, headers=GZIP), zipped=True)
    checked(await ask(node, headers=PLAIN), zipped=False)
    assert upstream.count("/a") == 2


async def test_what_another_node_has_stored_above_this_ones_bound_is_a_miss(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client
) -> None:
    answers(upstream)
    large = await gateway(CONFIG)
    small = await gateway({"plugins": {"cache": {"compress_over": 1000, "max_body": len(BODY) - 1}}})
    await ask(large)
    assert (await ask(small, headers=PLAIN)).body == BODY
    assert upstream.count("/a") == 2


@pytest.mark.parametrize(
    ("asked", "status", "body"),
    [
        ({"Range": "bytes=5-9"}, 206, BODY[5:10]),
        ({"Range": "bytes=5-9", "If-Range": '"v1"'}, 206, BODY[5:10]),
        ({"Range": "bytes=5-9", "If-Range": '"v1;gzip"'}, 200, BODY),
        ({"Range": f"bytes={len(BODY)}-"}, 416, b""),
    ],
)
async def test_ranges_are_of_what_is_not_packed(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, asked: dict[str, str], status: int, body: bytes
) -> None:
    answers(upstream)
    node = await gateway(CONFIG)
    await ask(node)
    got = await ask(node, headers=GZIP | asked)
    assert (got.status, got.cache, got.body) == (status, "HIT", body)
    assert "Content-Encoding" not in got.headers
    assert got.headers.get("ETag", '"v1"') == '"v1"'
    assert upstream.count("/a") == 1


async def test_a_head_brings_it_up_to_date(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock
) -> None:
    answers(upstream, clock)
    node = await gateway(CONFIG)
    clock.stand(node)
    await ask(node)
    clock.pass_by(61)
    assert (await ask(node, method="HEAD", headers=GZIP)).headers["Content-Length"] == str(len(BODY))
    checked(await ask(node, headers=GZIP), zipped=True)
    checked(await ask(node, headers=PLAIN), zipped=False)
    assert upstream.count("/a") == 2


async def test_who_waited_gets_it_too(gateway: StartGateway, upstream: UpstreamServer, ask: Client) -> None:
    answers(upstream)
    nodes = [await gateway(CONFIG), await gateway(CONFIG)]
    for got in await asyncio.gather(*[ask(nodes[number % 2], headers=GZIP) for number in range(20)]):
        assert (gzip.decompress(got.body) if "Content-Encoding" in got.headers else got.body) == BODY
    assert upstream.count("/a") == 1


async def test_tags_stay_as_they_are_where_nothing_is_packed(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client
) -> None:
    answers(upstream)
    node = await gateway({"plugins": {"cache": {}}})
    await ask(node, method="PUT", headers={"If-Match": '"v1;gzip"'})
    assert upstream.requests[-1].headers["If-Match"] == '"v1;gzip"'


async def test_who_waits_too_long_gets_a_stale_one_as_he_accepts(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock
) -> None:
    answers(upstream, clock, "max-age=1, stale-if-error=600")
    config = {"plugins": {"cache": {"compress_over": 1000, "wait_timeout": 0.1, "on_wait_timeout": "stale"}}}
    node = await gateway(config)
    clock.stand(node)
    await ask(node)
    clock.pass_by(5)
    came, end = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        came.set()
        await end.wait()
        return web.Response()

    upstream.answer("/a", slow)
    holder = asyncio.ensure_future(ask(node))
    await came.wait()
    for accepts, zipped in ((GZIP, True), (PLAIN, False)):
        got = await ask(node, headers=accepts)
        assert "wait-timeout" in got.why
        checked(got, zipped=zipped)
    end.set()
    await holder
