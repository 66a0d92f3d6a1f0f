"""What comes in over the wire: both ways in give the same answers, and what is ambiguous goes no further."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway.plugin import Handler, Plugin, Request, Response
from tests.conftest import StartGateway
from tests.harness import UpstreamServer, eventually, raw_exchange

HOST = b"Host: api.example\r\n"


def status_of(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    return int(answer[9:12])


@pytest.fixture(params=[True, False], ids=["short way", "aiohttp's way"])
def short_way(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


# -- malformed and ambiguous -------------------------------------------------------------------

BAD: dict[str, tuple[bytes, int]] = {
    "no http": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "bad method": (b"G@T / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "no version": (b"GET /\r\n" + HOST + b"\r\n", 400),
    "space in the target": (b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "fragment": (b"GET /a#b HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "no Host": (b"GET / HTTP/1.1\r\nA: b\r\n\r\n", 400),
    "two Hosts": (b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
    "Host with a comma": (b"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", 400),
    "Host with a path": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "Host with a user": (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    "Host with a space": (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    "empty Host": (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
    "obs-fold": (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n c\r\n\r\n", 400),
    "bare LF": (b"GET / HTTP/1.1\n" + b"Host: a\n\n", 400),
    "bare LF in a header": (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\nC: d\r\n\r\n", 400),
    "bare CR in a header": (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\rC: d\r\n\r\n", 400),
    "NUL in a value": (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\x00c\r\n\r\n", 400),
    "NUL in a name": (b"GET / HTTP/1.1\r\n" + HOST + b"A\x00: b\r\n\r\n", 400),
    "space before the colon": (b"GET / HTTP/1.1\r\n" + HOST + b"A : b\r\n\r\n", 400),
    "length and chunked": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "chunked and length": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        400,
    ),
    "two lengths": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400),
    "a list of lengths": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1, 1\r\n\r\nx", 400),
    "a negative length": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", 400),
    "a signed length": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +1\r\n\r\nx", 400),
    "a hex length": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 0x1\r\n\r\nx", 400),
    "unknown coding": (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n", 400),
    "chunked twice": (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked not last": (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", 400),
    "chunked hidden": (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "CONNECT": (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 400),
    "target without a path": (b"GET api.example HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "another scheme": (b"GET ftp://a/b HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "absolute target with a user": (b"GET http://u@a/b HTTP/1.1\r\n" + HOST + b"\r\n", 400),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_http_is_refused_and_never_forwarded(
    gateway: StartGateway, upstream: UpstreamServer, name: str, short_way: bool
) -> None:
    node = await gateway(short_way=short_way)
    data, status = BAD[name]
    answer = await raw_exchange(node.port, data)
    assert status_of(answer) == status
    assert b"Connection: close\r\n" in answer
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert json.loads(body)["status"] == status
    assert upstream.requests == []


@pytest.mark.parametrize(
    "body", [b"zz\r\nabc\r\n0\r\n\r\n", b"3\r\nabcd\r\n0\r\n\r\n", b"3 x\r\nabc\r\n0\r\n\r\n", b"-1\r\n\r\n"]
)
async def test_bad_chunks_are_400_and_the_upstream_never_has_a_whole_request(
    gateway: StartGateway, upstream: UpstreamServer, body: bytes
) -> None:
    node = await gateway()
    answer = await raw_exchange(node.port, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + body)
    assert status_of(answer) == 400
    assert upstream.requests == []


async def test_what_follows_a_bad_request_is_not_served(gateway: StartGateway, upstream: UpstreamServer) -> None:
    node = await gateway()
    data = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    answer = await raw_exchange(node.port, data + b"GET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert upstream.requests == []


async def test_limits(gateway: StartGateway, upstream: UpstreamServer, short_way: bool) -> None:
    limits = {"max_request_line": "1 KiB", "max_header": "1 KiB", "max_headers": 20, "max_body": 1000}
    node = await gateway({"server": limits}, short_way=short_way)

    async def status(data: bytes) -> int:
        return status_of(await raw_exchange(node.port, data))

    close = HOST + b"Connection: close\r\n"
    assert await status(b"GET /" + b"a" * 2000 + b" HTTP/1.1\r\n" + close + b"\r\n") == 414
    assert await status(b"GET / HTTP/1.1\r\n" + close + b"A: " + b"a" * 2000 + b"\r\n\r\n") == 431
    assert await status(b"GET / HTTP/1.1\r\n" + close + b"A" * 2000 + b": a\r\n\r\n") == 431
    assert await status(b"GET / HTTP/1.1\r\n" + close + b"A: b\r\n" * 30 + b"\r\n") == 431
    assert await status(b"POST / HTTP/1.1\r\n" + close + b"Content-Length: 1001\r\n\r\n" + b"x" * 1001) == 413
    chunks = b"190\r\n" + b"x" * 400 + b"\r\n"
    assert (
        await status(b"POST / HTTP/1.1\r\n" + close + b"Transfer-Encoding: chunked\r\n\r\n" + chunks * 3 + b"0\r\n\r\n")
        == 413
    )
    assert upstream.requests == []
    assert await status(b"POST / HTTP/1.1\r\n" + close + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000) == 200


async def test_slow_clients_are_sent_away(gateway: StartGateway, upstream: UpstreamServer) -> None:
    node = await gateway({"server": {"header_timeout": 0.1, "body_timeout": 0.1, "keepalive_timeout": 0.3}})
    assert status_of(await raw_exchange(node.port, b"GET / HTTP/1.1\r\nHo")) == 408
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 10\r\n\r\n"
    assert status_of(await raw_exchange(node.port, head + b"abc")) == 408
    assert await raw_exchange(node.port, b"") == b""
    assert upstream.requests == []


async def test_an_idle_connection_is_closed_after_its_time(gateway: StartGateway, short_way: bool) -> None:
    node = await gateway({"server": {"keepalive_timeout": 0.2}}, short_way=short_way)
    answer = await raw_exchange(node.port, b"GET / HTTP/1.1\r\n" + HOST + b"\r\n", within=3)
    assert status_of(answer) == 200
    assert b"Connection: close" not in answer


async def test_too_many_connections(gateway: StartGateway) -> None:
    node = await gateway({"server": {"max_connections": 2}})
    held = [await asyncio.open_connection("127.0.0.1", node.port) for _ in range(2)]
    await eventually(lambda: len(node.worker.server.connections) == 2)
    assert await raw_exchange(node.port, b"GET / HTTP/1.1\r\n" + HOST + b"\r\n") == b""
    for _, writer in held:
        writer.close()


# -- well-formed -------------------------------------------------------------------------------


async def test_both_ways_in_give_the_same_bytes(gateway: StartGateway, upstream: UpstreamServer) -> None:
    short, long = await gateway(short_way=True), await gateway(short_way=False)
    upstream.answer("/empty", lambda request: web.Response(status=204))
    upstream.answer("/cookies", lambda request: web.Response(headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]))
    upstream.answer("/big", lambda request: web.Response(body=b"x" * 300_000))
    requests = [
        b"GET /a?b=%2Fc&d=%C3%A9 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"HEAD /a HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /empty HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /cookies HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /big HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET http://api.example/abs HTTP/1.1\r\nHost: other\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"DELETE /a HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n",
    ]
    for request in requests:
        answers = []
        for node in (short, long):
            reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
            writer.write(request)
            answers.append(await read_answer(reader, head_only=request.startswith(b"HEAD")))
            writer.close()
        assert same(answers[0]) == same(answers[1])


def same(answer: bytes) -> bytes:
    """Without what must differ: the time, and the upstream's counter."""
    answer = re.sub(rb"Date: [^\r]*\r\n", b"", answer)
    return re.sub(rb'"n": \d+', b"", answer)


async def read_answer(reader: asyncio.StreamReader, *, head_only: bool = False) -> bytes:
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        if head_only or length is None:
            return head
        return head + await reader.readexactly(int(length[1]))


async def test_pipelined_requests_are_answered_in_order(
    gateway: StartGateway, upstream: UpstreamServer, short_way: bool
) -> None:
    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(0.05)
        return web.Response(text="slow")

    upstream.answer("/slow", slow)
    node = await gateway(short_way=short_way)
    one = b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n"
    post = b"POST /post HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc"
    last = b"GET /last HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    # All at once, and with the first on its own so that it takes the short way while the others arrive.
    for pieces in ([one + post + last], [one, post + last], [one, post[:50], post[50:] + last[:10], last[10:]]):
        upstream.requests.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            received = await reader.read()
        assert received.count(b"HTTP/1.1 200 OK") == 3
        assert received.index(b"slow") < received.index(b'"/post"') < received.index(b'"/last"')
        assert [request.target for request in upstream.requests] == ["/slow", "/post", "/last"]
        assert upstream.requests[1].body == b"abc"


async def test_a_long_pipeline_is_bounded_and_complete(gateway: StartGateway, short_way: bool) -> None:
    node = await gateway(short_way=short_way)
    request = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
    data = request * 300 + b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    received = await raw_exchange(node.port, data, within=20)
    assert received.count(b"HTTP/1.1 200 OK") == 301


async def test_a_connection_serves_many_requests_of_both_kinds(
    gateway: StartGateway, http: aiohttp.ClientSession
) -> None:
    node = await gateway()
    for number in range(20):
        async with http.request("POST" if number % 3 else "GET", f"{node.url}/{number}", data=b"x" * number) as answer:
            assert answer.status == 200
            await answer.read()
    assert len(node.worker.server.connections) == 1


async def test_expect_100_is_answered_only_when_the_body_is_wanted(
    gateway: StartGateway, upstream: UpstreamServer
) -> None:
    node = await gateway(
        {"routes": [{"match": {"path": "/ok"}}, {"match": {"path": "/get", "methods": ["GET"]}}]},
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    head = HOST + b"Content-Length: 3\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    writer.write(b"POST /ok HTTP/1.1\r\n" + head)
    async with asyncio.timeout(5):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc")
        assert status_of(await reader.read()) == 200
    writer.close()
    assert upstream.requests[0].body == b"abc"
    assert status_of(await raw_exchange(node.port, b"POST /get HTTP/1.1\r\n" + head, within=1)) == 405


async def test_no_route_and_no_method(gateway: StartGateway, http: aiohttp.ClientSession) -> None:
    node = await gateway({"routes": [{"match": {"path": "/a", "methods": ["GET", "PUT"]}}]})
    async with http.get(f"{node.url}/b") as answer:
        assert answer.status == 404
        assert answer.content_type == "application/problem+json"
    async with http.delete(f"{node.url}/a") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, PUT")
    async with http.head(f"{node.url}/a") as answer:
        assert answer.status == 200


# -- the client goes, the gateway goes ---------------------------------------------------------


async def test_a_client_that_goes_ends_its_request(
    gateway: StartGateway, upstream: UpstreamServer, short_way: bool
) -> None:
    ended = asyncio.Event()

    async def endless(request: web.Request) -> web.Response:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return web.Response()

    upstream.answer("/endless", endless)
    node = await gateway(short_way=short_way)
    _, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(b"GET /endless HTTP/1.1\r\n" + HOST + b"\r\n")
    await eventually(lambda: upstream.count("/endless"))
    assert node.worker.server.in_flight == 1
    writer.close()
    await eventually(lambda: node.worker.server.in_flight == 0)
    await eventually(lambda: not node.worker.server.connections)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_draining_loses_no_request_in_flight(
    gateway: StartGateway, upstream: UpstreamServer, http: aiohttp.ClientSession, method: str
) -> None:
    release = asyncio.Event()

    async def held(request: web.Request) -> web.Response:
        await release.wait()
        return web.Response(text="done")

    upstream.answer("/held", held)
    node = await gateway()

    async def body() -> Any:
        yield b"first"
        await release.wait()
        yield b"second"

    data = body() if method == "POST" else None
    request = asyncio.create_task(http.request(method, f"{node.url}/held", data=data))
    idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", node.port)
    late_reader, late_writer = await asyncio.open_connection("127.0.0.1", node.port)
    await eventually(lambda: node.worker.server.in_flight == 1)
    drain = asyncio.create_task(node.worker.drain(5))

    async def refused() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", node.port)
        except ConnectionRefusedError:
            return True
        writer.close()
        return False

    await eventually(refused)
    # What was sent on a kept connection meanwhile is served; one that stays idle is closed while others still work.
    late_writer.write(b"GET /late HTTP/1.1\r\n" + HOST + b"\r\n")
    late = await late_reader.read()
    assert status_of(late) == 200
    assert b"Connection: close" in late
    assert await idle_reader.read() == b""
    assert node.worker.server.in_flight == 1
    idle_writer.close()
    late_writer.close()
    release.set()
    answer = await request
    assert (answer.status, await answer.text()) == (200, "done")
    assert answer.headers["Connection"] == "close"
    assert await drain is True
    if method == "POST":
        (held_request,) = [request for request in upstream.requests if request.target == "/held"]
        assert held_request.body == b"firstsecond"


async def test_draining_ends_in_time(gateway: StartGateway, upstream: UpstreamServer) -> None:
    async def endless(request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    upstream.answer("/endless", endless)
    node = await gateway()
    _, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(b"GET /endless HTTP/1.1\r\n" + HOST + b"\r\n")
    await eventually(lambda: node.worker.server.in_flight == 1)
    async with asyncio.timeout(3):
        assert await node.worker.drain(0.1) is False
    writer.close()


# -- a plugin that fails -----------------------------------------------------------------------


class Explodes(Plugin):
    async def __call__(self, request: Request, call_next: Handler) -> Response:
        raise RuntimeError("with a secret in it")


class AsksBadly(Plugin):
    def ask(self, request: Request, redis: Any) -> None:
        raise RuntimeError("in ask")


@pytest.mark.parametrize("name", ["Explodes", "AsksBadly"])
async def test_a_plugins_error_is_500_and_says_nothing_of_it(
    gateway: StartGateway, http: aiohttp.ClientSession, name: str, short_way: bool, caplog: pytest.LogCaptureFixture
) -> None:
    node = await gateway({"plugins": {"mine": {"use": f"tests.test_server:{name}"}}}, short_way=short_way)
    async with http.get(node.url) as answer:
        assert answer.status == 500
        assert "secret" not in await answer.text()
    assert "RuntimeError" in caplog.text


class Splits(Plugin):
    async def __call__(self, request: Request, call_next: Handler) -> Response:
        response = await call_next(request)
        response.headers["X-Mine"] = "a\r\nSet-Cookie: b=c"
        return response


async def test_a_header_that_would_split_the_answer_is_not_sent(gateway: StartGateway, short_way: bool) -> None:
    node = await gateway({"plugins": {"mine": {"use": "tests.test_server:Splits"}}}, short_way=short_way)
    answer = await raw_exchange(node.port, b"GET / HTTP/1.1\r\n" + HOST + b"\r\n", within=2)
    assert b"Set-Cookie" not in answer


# -- who the client is -------------------------------------------------------------------------


class WhoAmI(Plugin):
    async def __call__(self, request: Request, call_next: Handler) -> Response:
        return Response(200, {}, f"{request.client} {request.scheme} {request.host}".encode())


@pytest.mark.parametrize(
    ("trusted", "headers", "expected"),
    [
        ([], {"X-Forwarded-For": "9.9.9.9", "X-Forwarded-Proto": "https"}, "127.0.0.1 http"),
        (["127.0.0.0/8"], {"X-Forwarded-For": "9.9.9.9", "X-Forwarded-Proto": "https"}, "9.9.9.9 https"),
        (["127.0.0.0/8"], {"X-Forwarded-For": "6.6.6.6, 9.9.9.9"}, "9.9.9.9 http"),
        (["127.0.0.0/8", "10.0.0.0/8"], {"X-Forwarded-For": "6.6.6.6, 9.9.9.9, 10.1.1.1"}, "9.9.9.9 http"),
        (["127.0.0.0/8"], {"X-Forwarded-For": "nonsense"}, "127.0.0.1 http"),
        (["127.0.0.0/8"], {"X-Forwarded-For": "6.6.6.6, nonsense"}, "127.0.0.1 http"),
        (["127.0.0.0/8"], {"X-Forwarded-For": "[2001:db8::1]:4711"}, "2001:db8::1 http"),
        (["127.0.0.0/8"], {"X-Forwarded-For": "::ffff:9.9.9.9"}, "9.9.9.9 http"),
        (["127.0.0.0/8"], {}, "127.0.0.1 http"),
    ],
)
async def test_only_a_trusted_proxy_is_believed(
    gateway: StartGateway, http: aiohttp.ClientSession, trusted: list[str], headers: dict[str, str], expected: str
) -> None:
    node = await gateway(
        {"server": {"trusted_proxies": trusted}, "plugins": {"who": {"use": "tests.test_server:WhoAmI"}}}
    )
    async with http.get(node.url, headers={"Host": "API.example:81", **headers}) as answer:
        assert await answer.text() == f"{expected} api.example:81"


async def test_the_authority_of_an_absolute_target_replaces_host(
    gateway: StartGateway, upstream: UpstreamServer
) -> None:
    node = await gateway()
    await raw_exchange(node.port, b"GET http://Real.example/p?q HTTP/1.1\r\nHost: fake\r\nConnection: close\r\n\r\n")
    assert upstream.requests[0].target == "/p?q"
    assert upstream.requests[0].headers["Host"] == "Real.example"


@pytest.mark.parametrize("target", ["/a?", "/a??", "/a?b?c", "/?", "/%7e/%2F//..;x", "/a?%", "//a"])
async def test_the_target_arrives_byte_for_byte(
    gateway: StartGateway, upstream: UpstreamServer, target: str, short_way: bool
) -> None:
    node = await gateway(short_way=short_way)
    head = f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    assert status_of(await raw_exchange(node.port, head.encode())) == 200
    assert upstream.requests[0].target == target


async def test_garbage_never_gets_more_than_an_error(gateway: StartGateway, upstream: UpstreamServer) -> None:
    """A cheap fuzz: valid requests with one byte changed are either understood or refused; the server lives on."""
    node = await gateway({"server": {"header_timeout": 0.2, "body_timeout": 0.2}})
    request = b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nConnection: close\r\n\r\nabc"

    async def mutate(position: int, byte: int) -> None:
        data = request[:position] + bytes([byte]) + request[position + 1 :]
        answer = await raw_exchange(node.port, data, within=3)
        with contextlib.suppress(AssertionError):
            assert status_of(answer) < 500 or status_of(answer) == 501

    await asyncio.gather(
        *(mutate(position, byte) for position in range(0, len(request), 3) for byte in (0, 10, 13, 32, 58, 127, 255))
    )
    assert status_of(await raw_exchange(node.port, request)) == 200
    assert node.worker.server.in_flight == 0
