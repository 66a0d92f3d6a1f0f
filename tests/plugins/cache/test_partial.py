"""Parts of answers (RFC 9110, section 14; RFC 9111, sections 3.3 and 3.4), as clients see them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest
from aiohttp import web

from tests.conftest import StartGateway
from tests.harness import UpstreamServer
from tests.plugins.cache.conftest import Client, Clock

Say = Callable[..., None]
CACHE: dict[str, Any] = {"plugins": {"cache": {}}}
BODY = bytes(range(256)) * 4
MODIFIED = "Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.fixture
def whole(upstream: UpstreamServer) -> None:
    async def tell(request: web.Request) -> web.Response:
        if "Range" in request.headers:
            return web.Response(status=206, body=b"\0", headers={"Content-Range": "bytes 0-0/1024"})
        fields = {"Cache-Control": "max-age=60", "ETag": '"v1"', "Last-Modified": MODIFIED, "Content-Type": "a/b"}
        return web.Response(body=BODY, headers=fields)

    upstream.answer("/a", tell)


@pytest.mark.parametrize(
    ("asked", "status", "said", "body"),
    [
        ({"Range": "bytes=1-2"}, 206, "bytes 1-2/1024", BODY[1:3]),
        ({"Range": "bytes=1000-"}, 206, "bytes 1000-1023/1024", BODY[1000:]),
        ({"Range": "bytes=-1"}, 206, "bytes 1023-1023/1024", BODY[-1:]),
        ({"Range": "bytes=1000-4000"}, 206, "bytes 1000-1023/1024", BODY[1000:]),
        ({"Range": "bytes=a-b"}, 200, None, BODY),
        ({"Range": "bytes=1024-"}, 416, "bytes */1024", b""),
        ({"Range": "bytes=1-2", "If-Range": '"v1"'}, 206, "bytes 1-2/1024", BODY[1:3]),
        ({"Range": "bytes=1-2", "If-Range": '"v2"'}, 200, None, BODY),
        ({"Range": "bytes=1-2", "If-Range": 'W/"v1"'}, 200, None, BODY),
        ({"Range": "bytes=1-2", "If-Range": MODIFIED}, 206, "bytes 1-2/1024", BODY[1:3]),
        ({"If-Range": '"v2"'}, 200, None, BODY),
        ({"Range": "bytes=1-2", "If-None-Match": '"v1"'}, 304, None, b""),
    ],
)
async def test_rfc_9110_14_2_a_part_of_what_is_stored(
    gateway: StartGateway,
    upstream: UpstreamServer,
    ask: Client,
    whole: None,
    asked: dict[str, str],
    status: int,
    said: str | None,
    body: bytes,
) -> None:
    node = await gateway(CACHE)
    await ask(node)
    got = await ask(node, headers=asked)
    assert (got.status, got.headers.get("Content-Range"), got.body) == (status, said, body)
    assert got.headers.get("ETag", '"v1"') == '"v1"'
    assert (got.cache, int(got.headers.get("Content-Length", 0))) == ("HIT", len(body))
    assert upstream.count("/a") == 1


async def test_rfc_9110_15_3_7_2_several_parts(gateway: StartGateway, ask: Client, whole: None) -> None:
    node = await gateway(CACHE)
    await ask(node)
    got = await ask(node, headers={"Range": "bytes=0-1, -2"})
    kind, _, boundary = got.headers["Content-Type"].partition("; boundary=")
    assert (got.status, kind, "Content-Range" in got.headers) == (206, "multipart/byteranges", False)
    first, second = got.body.removesuffix(f"--{boundary}--\r\n".encode()).split(f"--{boundary}\r\n".encode())[1:]
    assert first == b"Content-Type: a/b\r\nContent-Range: bytes 0-1/1024\r\n\r\n\0\1\r\n"
    assert second == b"Content-Type: a/b\r\nContent-Range: bytes 1022-1023/1024\r\n\r\n\xfe\xff\r\n"


async def test_rfc_9110_14_2_head_has_no_parts(gateway: StartGateway, ask: Client, whole: None) -> None:
    node = await gateway(CACHE)
    await ask(node)
    got = await ask(node, method="HEAD", headers={"Range": "bytes=1-2"})
    assert (got.status, got.headers["Content-Length"]) == (200, "1024")


async def test_a_part_of_what_is_not_there_is_the_upstreams(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, whole: None
) -> None:
    node = await gateway(CACHE)
    got = await ask(node, headers={"Range": "bytes=0-0"})
    assert (got.status, got.cache, got.body) == (206, "MISS", b"\0")
    assert upstream.requests[-1].headers["Range"] == "bytes=0-0"


@pytest.fixture
def ranges(upstream: UpstreamServer) -> dict[str, str]:
    """An upstream that knows ranges; what is returned can be changed."""
    fields = {"Cache-Control": "max-age=60", "ETag": '"v1"', "Content-Type": "a/b"}

    async def tell(request: web.Request) -> web.Response:
        asked = request.http_range
        if asked.start is None:
            return web.Response(body=BODY, headers=fields)
        start, stop, _ = asked.indices(len(BODY))
        said = {"Content-Range": f"bytes {start}-{stop - 1}/{len(BODY)}"}
        return web.Response(status=206, body=BODY[start:stop], headers=said | fields)

    upstream.answer("/a", tell)
    return fields


async def test_rfc_9111_3_3_a_part_is_stored_and_answers_what_it_holds(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, ranges: dict[str, str]
) -> None:
    node, other = await gateway(CACHE), await gateway(CACHE)
    assert (await ask(node, headers={"Range": "bytes=-24"})).body == BODY[1000:]
    for place in (node, other):
        got = await ask(place, headers={"Range": "bytes=1010-1011"})
        assert (got.status, got.cache, got.body) == (206, "HIT", BODY[1010:1012])
        assert got.headers["Content-Range"] == "bytes 1010-1011/1024"
    assert (await ask(node, headers={"Range": "bytes=-1"})).cache == "HIT"
    assert (await ask(node, headers={"Range": "bytes=2000-"})).status == 416
    assert upstream.count("/a") == 1
    got = await ask(node)
    assert (got.status, got.cache, got.body) == (200, "MISS", BODY)
    assert (await ask(node, headers={"Range": "bytes=0-1"})).cache == "HIT"
    assert upstream.count("/a") == 2


async def test_rfc_9111_3_4_parts_become_the_whole(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, ranges: dict[str, str]
) -> None:
    node = await gateway(CACHE)
    for part in ("0-99", "50-499", "500-"):
        await ask(node, headers={"Range": f"bytes={part}"})
    got = await ask(node)
    assert (got.status, got.cache, got.body) == (200, "HIT", BODY)
    assert "Content-Range" not in got.headers
    assert upstream.count("/a") == 3


async def test_rfc_9111_3_4_parts_of_different_versions_are_not_joined(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, ranges: dict[str, str]
) -> None:
    node = await gateway(CACHE)
    await ask(node, headers={"Range": "bytes=0-99"})
    ranges["ETag"] = '"v2"'
    await ask(node, headers={"Range": "bytes=100-"})
    assert (await ask(node)).cache == "MISS"


async def test_a_purge_reaches_parts(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, ranges: dict[str, str]
) -> None:
    node = await gateway(CACHE)
    await ask(node, headers={"Range": "bytes=0-99"})
    assert (await ask(node, headers={"Range": "bytes=0-9"})).cache == "HIT"
    await ask(node, method="DELETE")
    assert (await ask(node, headers={"Range": "bytes=0-9"})).cache == "MISS"


async def test_rfc_9110_14_4_a_part_of_another_length_than_it_says_is_not_stored(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client
) -> None:
    fields = {"Cache-Control": "max-age=60", "Content-Range": "bytes 4-9/10"}

    async def tell(request: web.Request) -> web.Response:
        return web.Response(status=206, body=b"01234", headers=fields)

    upstream.answer("/a", tell)
    node = await gateway(CACHE)
    for _ in range(2):
        got = await ask(node, headers={"Range": "bytes=4-9"})
        assert (got.status, got.cache, got.body) == (206, "MISS", b"01234")


async def test_an_upstream_without_ranges_is_asked_once(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say
) -> None:
    say("/a", "max-age=60")
    node = await gateway(CACHE)
    first, second = [await ask(node, headers={"Range": "bytes=1-"}) for _ in range(2)]
    assert (first.status, first.cache, first.body) == (206, "MISS", b"a 1")
    assert (second.status, second.cache, second.body) == (206, "HIT", b"a 1")
    assert upstream.count("/a") == 1


async def test_parts_are_of_one_variant(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, ranges: dict[str, str]
) -> None:
    ranges["Vary"] = "Accept-Language"
    node = await gateway(CACHE)
    for language, cache in (("de", "MISS"), ("de", "HIT"), ("fr", "MISS"), ("de", "HIT")):
        got = await ask(node, headers={"Range": "bytes=0-9", "Accept-Language": language})
        assert (got.status, got.cache) == (206, cache)


async def test_rfc_9111_3_3_only_what_is_missing_is_fetched(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, ranges: dict[str, str]
) -> None:
    node = await gateway(CACHE)
    await ask(node, headers={"Range": "bytes=0-999"})
    got = await ask(node)
    assert (got.status, got.cache, got.body) == (200, "MISS", BODY)
    assert "Content-Range" not in got.headers
    sent = upstream.requests[-1].headers
    assert (sent["Range"], sent["If-Range"]) == ("bytes=1000-", '"v1"')
    assert (await ask(node)).cache == "HIT"
    assert upstream.count("/a") == 2


async def test_rfc_9111_3_4_a_part_that_has_changed_meanwhile_is_not_completed(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, ranges: dict[str, str]
) -> None:
    node = await gateway(CACHE)
    await ask(node, headers={"Range": "bytes=0-999"})
    ranges["ETag"] = '"v2"'  # an upstream that does not know If-Range
    got = await ask(node)
    assert (got.status, got.headers["ETag"], got.body) == (200, '"v2"', BODY)
    assert "Range" not in upstream.requests[-1].headers
    assert (await ask(node)).cache == "HIT"


async def test_an_error_is_not_hidden_by_a_part_from_who_wants_the_whole(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, ranges: dict[str, str], clock: Clock
) -> None:
    ranges["Cache-Control"] = "max-age=1, stale-if-error=60"
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node, headers={"Range": "bytes=0-99"})
    clock.pass_by(5)

    async def failing(request: web.Request) -> web.Response:
        return web.Response(status=503)

    upstream.answer("/a", failing)
    assert (await ask(node)).status == 503


async def test_a_part_that_is_not_stored_leaves_no_mark_for_the_whole(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, ranges: dict[str, str]
) -> None:
    ranges["Cache-Control"] = "no-store"
    node = await gateway(CACHE)
    await ask(node, headers={"Range": "bytes=0-99"})
    ranges["Cache-Control"] = "max-age=60"
    assert "not-cacheable" not in (await ask(node)).why
    assert (await ask(node)).cache == "HIT"


async def test_who_wants_the_whole_is_not_given_the_part_that_another_node_fetches(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, ranges: dict[str, str]
) -> None:
    node, other = await gateway(CACHE), await gateway(CACHE)
    began, end = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        if request.headers.get("Range") == "bytes=0-9":
            began.set()
            await end.wait()
            return web.Response(status=206, body=BODY[:10], headers={"Content-Range": "bytes 0-9/1024"} | ranges)
        return web.Response(body=BODY, headers=ranges)

    upstream.answer("/a", slow)
    part = asyncio.create_task(ask(node, headers={"Range": "bytes=0-9"}))
    await began.wait()
    whole = [asyncio.create_task(ask(place)) for place in (node, other, other)]
    await asyncio.sleep(0.05)
    end.set()
    assert (await part).status == 206
    for task in whole:
        assert ((await task).status, (await task).body) == (200, BODY)


@pytest.mark.parametrize("status", [416, 206])
async def test_rfc_9111_3_3_a_part_whose_rest_does_not_come_is_fetched_whole(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, ranges: dict[str, str], status: int
) -> None:
    node = await gateway(CACHE)
    await ask(node, headers={"Range": "bytes=0-99"})

    async def odd(request: web.Request) -> web.Response:
        if "Range" in request.headers:
            return web.Response(status=status, headers={"Content-Range": "bytes */1024"} | ranges)
        return web.Response(body=BODY, headers=ranges)

    upstream.answer("/a", odd)
    for cache in ("MISS", "HIT"):
        got = await ask(node)
        assert (got.status, got.cache, got.body) == (200, cache, BODY)


async def test_rfc_9111_3_4_a_weak_validator_joins_nothing(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, ranges: dict[str, str]
) -> None:
    ranges["ETag"] = 'W/"v1"'
    node = await gateway(CACHE)
    await ask(node, headers={"Range": "bytes=0-999"})
    got = await ask(node)
    assert (got.status, got.cache, got.body) == (200, "MISS", BODY)
    assert "Range" not in upstream.requests[-1].headers


@pytest.mark.parametrize(("etag", "status", "cache"), [('"v1"', 304, "HIT"), ('"v0"', 206, "HIT")])
async def test_rfc_9110_13_2_2_a_stored_part_is_asked_about(
    gateway: StartGateway, ask: Client, ranges: dict[str, str], etag: str, status: int, cache: str
) -> None:
    node = await gateway(CACHE)
    asked = {"Range": "bytes=0-9", "If-None-Match": etag}
    assert (await ask(node, headers=asked)).status == status
    got = await ask(node, headers=asked)
    assert (got.status, got.cache) == (status, cache)


async def test_what_is_stale_is_asked_about_whole_and_then_cut(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock
) -> None:
    async def tell(request: web.Request) -> web.Response:
        fields = {"ETag": '"v1"', "Cache-Control": "max-age=60"}
        known = request.headers.get("If-None-Match") == '"v1"'
        return web.Response(status=304, headers=fields) if known else web.Response(body=BODY, headers=fields)

    upstream.answer("/a", tell)
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node)
    clock.pass_by(61)
    got = await ask(node, headers={"Range": "bytes=0-1"})
    assert (got.status, got.body) == (206, BODY[:2])
    assert "fwd-status=304" in got.why
    assert "Range" not in upstream.requests[-1].headers


async def test_only_if_cached_a_part_too(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, ranges: dict[str, str]
) -> None:
    node = await gateway(CACHE)
    stored = {"Cache-Control": "only-if-cached"}
    assert (await ask(node, headers={"Range": "bytes=0-9"} | stored)).status == 504
    await ask(node, headers={"Range": "bytes=0-9"})
    assert (await ask(node, headers={"Range": "bytes=0-9"} | stored)).status == 206
    assert upstream.count("/a") == 1


async def test_parts_of_what_is_for_all_are_for_all_and_no_others(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock
) -> None:
    fields = {"Cache-Control": "public, max-age=60", "ETag": '"v1"'}

    async def tell(request: web.Request) -> web.Response:
        fields["Date"] = formatdate(clock(), usegmt=True)
        text = request.headers.get("Authorization", "nobody").ljust(20, ".")
        if "Range" not in request.headers:
            return web.Response(text=text, headers=fields)
        return web.Response(status=206, text=text[:10], headers=fields | {"Content-Range": "bytes 0-9/20"})

    upstream.answer("/a", tell)
    node = await gateway({"plugins": {"cache": {"stale_if_error": 0, "keep": 0}}})
    clock.stand(node)

    async def part(name: str | None) -> tuple[str, bytes]:
        got = await ask(node, headers={"Range": "bytes=0-9"} | ({"Authorization": name} if name else {}))
        assert got.status == 206
        return got.cache, got.body.rstrip(b".")

    assert await part("ann") == ("MISS", b"ann")
    for name in ("bob", "ann", None):
        assert await part(name) == ("HIT", b"ann")
    clock.pass_by(100)
    fields["Cache-Control"] = "max-age=60"
    assert await part(None) == ("MISS", b"nobody")
    for name in ("ann", "bob"):
        assert (await part(name))[1] == name.encode()
    assert (await ask(node, headers={"Authorization": "ann"})).body.startswith(b"ann.")
