"""The short way through a connection gives what aiohttp's own way gives, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import re
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
import redis.asyncio
from aiohttp import web

from gateway.heads import MAX_HEAD_BYTES
from gateway.observe import Metrics, Observer
from gateway.plugin import Answer, Handler, Plugin, Redis, Request, Response
from plugins.session import Layout, create_session_async
from plugins.token_blacklist.tokens import claims_of, id_of
from tests.conftest import StartGateway
from tests.harness import Gateway, UpstreamServer, Valkey, eventually

HOST = b"Host: api.example\r\n"
TIMES = 3  # the third time the head is remembered
DAY = 24 * 3600
REQUEST_LINE = re.compile(rb"^([^ \r\n]+) [^ ]+ HTTP/1.[01]\r$", re.MULTILINE)
ETAG = '"v1"'
TOKEN = jwt.encode({"jti": "1", "exp": 4_000_000_000}, "a secret of at least thirty-two bytes", algorithm="HS256")
REVOKED = jwt.encode({"jti": "2", "exp": 4_000_000_000}, "a secret of at least thirty-two bytes", algorithm="HS256")


# -- the same bytes ------------------------------------------------------------------------------------


def head(method: str, target: str, *lines: bytes, version: str = "1.1", host: bytes = HOST) -> bytes:
    return (
        f"{method} {target} HTTP/{version}\r\n".encode() + host + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    )


CHUNKS = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"

CASES: dict[str, bytes] = {
    "GET": head("GET", "/plain?b=%2Fc&d=%C3%A9"),
    "HEAD": head("HEAD", "/plain"),
    "GET with a body": head("GET", "/plain", b"Content-Length: 5") + b"hello",
    "POST": head("POST", "/plain", b"Content-Length: 5") + b"hello",
    "POST without a body": head("POST", "/plain", b"Content-Length: 0"),
    "POST without a length": head("POST", "/plain"),
    "POST in chunks": head("POST", "/plain", b"Transfer-Encoding: chunked") + CHUNKS,
    "DELETE": head("DELETE", "/plain"),
    "a method of its own": head("PURGE", "/plain"),
    "OPTIONS *": head("OPTIONS", "*"),
    "absolute form": head("GET", "http://api.example/plain", host=b"Host: other\r\n"),
    "HTTP/1.0": head("GET", "/plain", version="1.0"),
    "HTTP/1.0 without Host": head("GET", "/plain", version="1.0", host=b""),
    "HTTP/1.0 that stays": head("GET", "/plain", b"Connection: keep-alive", version="1.0"),
    "HTTP/1.0 and a stream": head("GET", "/stream", b"Connection: keep-alive", version="1.0"),
    "Connection: close": head("GET", "/plain", b"Connection: close"),
    "undecodable bytes": head("GET", "/plain", b"X-Odd: \xff\xfe caf\xc3\xa9"),
    "many fields": head("GET", "/plain", *(b"X-%d: %d" % (number, number) for number in range(60))),
    "a long head": head("GET", "/plain", b"X-Long: " + b"x" * 3000),
    "Expect without a body": head("GET", "/plain", b"Expect: 100-continue"),
    "an upgrade that is refused": head("GET", "/plain", b"Connection: Upgrade", b"Upgrade: other"),
    "204": head("GET", "/empty"),
    "cookies": head("GET", "/cookies"),
    "404": head("GET", "/nowhere"),
    "404 to HEAD": head("HEAD", "/nowhere"),
    "404 to POST": head("POST", "/nowhere", b"Content-Length: 5") + b"hello",
    "405": head("DELETE", "/get-only"),
    "413": head("POST", "/plain", b"Content-Length: 2000") + b"x" * 2000,
    "bad Host": head("GET", "/plain", host=b"Host: a b\r\n"),
    "no Host": head("GET", "/plain", host=b""),
    "a fragment": head("GET", "/plain#x"),
    "not HTTP": b"G@T / HTTP/1.1\r\n\r\n",
    "100 KB": head("GET", "/big"),
    "100 KB to HEAD": head("HEAD", "/big"),
    "a stream": head("GET", "/stream"),
    "a stream to HEAD": head("HEAD", "/stream"),
    "a stream of a known length": head("GET", "/long"),
    "500 of the upstream": head("GET", "/failing"),
    "502": head("GET", "/unreachable"),
    "a plugin that fails": head("GET", "/broken"),
    "within the limit": head("GET", "/limited"),
    "over the limit": head("GET", "/limited-to-one"),
    "over the limit, HEAD": head("HEAD", "/limited-to-one-too"),
    "no session": head("GET", "/session"),
    "a dead session": head("GET", "/session", b"Cookie: session=made-up"),
    "a session": head("GET", "/session", b"Cookie: session={session}"),
    "a token": head("GET", "/token", b"Authorization: Bearer " + TOKEN.encode()),
    "a revoked token": head("GET", "/token", b"Authorization: Bearer " + REVOKED.encode()),
    "a garbled token": head("GET", "/token", b"Authorization: Bearer a.b"),
    "cache": head("GET", "/cached/a"),
    "cache, HEAD only": head("HEAD", "/cached/b"),
    "cache, GET then HEAD": head("GET", "/cached/c") + head("HEAD", "/cached/c"),
    "cache, 304": head("GET", "/cached/d", b"If-None-Match: " + ETAG.encode()),
    "cache, 304 of a stored one": head("GET", "/cached/e")
    + head("GET", "/cached/e", b"If-None-Match: " + ETAG.encode()),
    "cache, a part": head("GET", "/cached/f", b"Range: bytes=0-3"),
    "cache, not stored": head("GET", "/cached/private"),
    "cache, 100 KB": head("GET", "/cached/big"),
    "cache, a stream": head("GET", "/cached/stream"),
    "cache, HTTP/1.0": head("GET", "/cached/g", b"Connection: keep-alive", version="1.0"),
    "cache, Connection: close": head("GET", "/cached/h", b"Connection: close"),
    "cache, POST": head("POST", "/cached/i", b"Content-Length: 5") + b"hello",
    "all plugins": head("GET", "/all/a", b"Cookie: session={session}", b"Authorization: Bearer " + TOKEN.encode()),
    "pipelined": head("GET", "/plain") * 3
    + head("POST", "/plain", b"Content-Length: 5")
    + b"hello"
    + head("GET", "/x"),
    "pipelined hits": head("GET", "/cached/j") * 5 + head("HEAD", "/cached/j"),
    "pipelined, the first closes": head("GET", "/plain", b"Connection: close") + head("GET", "/plain"),
    "pipelined, a bad one in the middle": head("GET", "/plain")
    + head("GET", "/plain", host=b"")
    + head("GET", "/plain"),
}
# Where the last of them does not end in 200.
STATUS = {
    "OPTIONS *": 204,
    "cache, a part": 206,
    "204": 204,
    "404": 404,
    "404 to HEAD": 404,
    "404 to POST": 404,
    "405": 405,
    "413": 413,
    "bad Host": 400,
    "no Host": 400,
    "a fragment": 400,
    "not HTTP": 400,
    "500 of the upstream": 500,
    "502": 502,
    "a plugin that fails": 500,
    "over the limit": 429,
    "over the limit, HEAD": 429,
    "no session": 401,
    "a dead session": 401,
    "a revoked token": 401,
    "cache, 304": 304,
    "cache, 304 of a stored one": 304,
    # What follows the end of a connection, or is refused by the parser itself, takes with it what came in one piece.
    "pipelined, the first closes": 400,
    "pipelined, a bad one in the middle": 400,
}
MASKED = (
    (re.compile(rb"(?i)(Date: )[^\r]*"), rb"\1-"),
    (re.compile(rb"(?i)(X-Request-Id: )[^\r]*"), rb"\1-"),
    # Seconds until a window ends: by Redis's clock, which goes on between the two.
    (re.compile(rb"(?i)(X-RateLimit-Reset: |Retry-After: )\d+"), rb"\1-"),
)


class Fails(Plugin):
    def check(self, request: Request, reply: Any) -> None:
        raise RuntimeError("as it must")


def answers_of(upstream: UpstreamServer) -> None:
    """Answers that depend on nothing but the request."""

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Cache-Control": "max-age=600"})
        await response.prepare(request)
        if request.method != "HEAD":
            for piece in (b"one ", b"two ", b"x" * 5000):
                await response.write(piece)
        return response

    async def long(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "400000"})
        await response.prepare(request)
        if request.method != "HEAD":
            for _ in range(4):
                await response.write(b"x" * 100_000)
        return response

    def cacheable(request: web.Request) -> web.Response:
        if request.headers.get("If-None-Match") == ETAG:
            return web.Response(status=304, headers={"ETag": ETAG})
        body = b"y" * 100_000 if request.path.endswith("big") else b"cached " + request.path.encode()
        control = "private, no-store" if request.path.endswith("private") else "max-age=600"
        return web.Response(body=body, headers={"Cache-Control": control, "ETag": ETAG})

    async def plain(request: web.Request) -> web.Response:
        odd = [line for line in request.raw_headers if line[0] == b"X-Odd"]
        return web.json_response([request.method, request.raw_path, (await request.read()).decode(), repr(odd)])

    answers: dict[str, Callable[[web.Request], Any]] = {
        "/big": lambda request: web.Response(body=b"z" * 100_000),
        "/empty": lambda request: web.Response(status=204),
        "/cookies": lambda request: web.Response(headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]),
        "/failing": lambda request: web.Response(status=500, text="no"),
        "/long": long,
        "/stream": stream,
        "/cached/stream": stream,
        "/session": lambda request: web.Response(text=request.headers.get("X-User-Id", "-")),
    }
    for path in ("/plain", "/x", "/token", "/limited", "/limited-to-one", "/limited-to-one-too", "/get-only"):
        answers[path] = plain
    for name in (*"abcdefghij", "private", "big"):
        answers[f"/cached/{name}"] = cacheable
    answers["/all/a"] = cacheable
    for path, answer in answers.items():
        upstream.answer(path, answer)


def configuration(prefix: str, port: int) -> dict[str, Any]:
    one = {"use": "rate_limit", "limits": ["1/day"], "by": ["ip", "route"]}

    def route(path: str, *plugins: str, **keys: Any) -> dict[str, Any]:
        methods = {"methods": keys.pop("methods")} if "methods" in keys else {}
        return {"match": {"path": path, **methods}, "plugins": ["request_id", *plugins], **keys}

    return {
        "redis": {"prefix": prefix},
        "server": {"max_body": 1000},
        "upstreams": {
            "default": {"url": f"http://127.0.0.1:{port}"},
            # A port that nobody listens on: TCP's discard.
            "away": {"url": "http://127.0.0.1:9"},
        },
        "plugins": {
            "request_id": {},
            "session": {"sources": ["cookie"], "sliding": False},
            "token_blacklist": {},
            "loose": {"use": "rate_limit", "limits": ["5000/day"]},
            "one": one,
            "cache": {},
            "fails": {"use": "tests.test_short_way:Fails"},
        },
        "routes": [
            route("/get-only", methods=["GET"]),
            route("/unreachable", upstream="away"),
            route("/broken", "fails"),
            route("/limited", "loose"),
            route("/limited-to-one", "one"),
            route("/limited-to-one-too", "one"),
            route("/session", "session"),
            route("/token", "token_blacklist"),
            route("/cached/*", "cache"),
            route("/all/*", "session", "token_blacklist", "loose", "cache"),
            *(route(path) for path in ("/plain", "/x", "/empty", "/cookies", "/big", "/stream", "/long", "/failing")),
        ],
    }


class Wire:
    """A client that keeps each answer's bytes, and opens a new connection where the old one was closed."""

    def __init__(self, node: Gateway) -> None:
        self.node = node
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def exchange(self, data: bytes) -> list[bytes]:
        """The answers to these requests, and `closed` where the connection ended."""
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.node.port)
            await eventually(self.ready)
        reader, writer = self.streams
        writer.write(data)
        answers = []
        async with asyncio.timeout(5):
            for method in REQUEST_LINE.findall(data):
                answer = await read_answer(reader, method)
                answers.append(answer)
                if b"\r\nConnection: close\r\n" in answer:
                    answers.append(b"closed" + await reader.read())
                    await self.close()
                    break
        return answers

    def ready(self) -> bool:
        """Whether the gateway waits for a request: what comes before that goes aiohttp's way."""
        port = self.streams[1].get_extra_info("sockname")[1] if self.streams is not None else 0
        return any(
            connection.transport is not None
            and connection.transport.get_extra_info("peername")[1] == port
            and connection._waiter is not None
            for connection in self.node.worker.server.connections
        )

    async def close(self) -> None:
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


async def read_answer(reader: asyncio.StreamReader, method: bytes) -> bytes:
    """One answer, what is only a matter of time masked. Chunks are joined: they are what of the upstream's came at
    once."""
    answer = await reader.readuntil(b"\r\n\r\n")
    status = int(answer[9:12])
    length = re.search(rb"Content-Length: (\d+)", answer)
    body = b""
    if method == b"HEAD" or status in (204, 304):
        pass
    elif length is not None:
        body = await reader.readexactly(int(length[1]))
    elif b"Transfer-Encoding: chunked" in answer:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        assert await reader.readexactly(2) == b"\r\n"
    else:
        body = await reader.read()
    for pattern, instead in MASKED:
        answer = pattern.sub(instead, answer)
    return answer + body


@pytest.fixture
async def both(
    gateway: StartGateway, upstream: UpstreamServer, redis_client: redis.asyncio.Redis
) -> tuple[Gateway, Gateway]:
    """A node with the short way and one without. Each has its own keys in Redis, so that both see the same."""
    answers_of(upstream)
    nodes = []
    now = float(int(time.time()))
    for prefix, short_way in (("short", True), ("long", False)):
        node = await gateway(configuration(prefix, upstream.port), short_way=short_way)
        node.plugins["cache"].clock = lambda: now  # type: ignore[attr-defined]
        await redis_client.set(f"{prefix}:token:blacklist:{id_of(REVOKED, claims_of(REVOKED))}", "revoked", ex=DAY)
        nodes.append(node)
    return nodes[0], nodes[1]


@pytest.mark.parametrize("name", CASES)
async def test_both_ways_give_the_same_bytes(
    both: tuple[Gateway, Gateway], redis_client: redis.asyncio.Redis, name: str
) -> None:
    got = []
    for prefix, node in zip(("short", "long"), both, strict=True):
        session = await create_session_async(redis_client, "alice", layout=Layout(prefix))
        wire = Wire(node)
        data = CASES[name].replace(b"{session}", session.encode())
        got.append([await wire.exchange(data) for _ in range(TIMES)])
        await wire.close()
        server = node.worker.server
        assert server.in_flight == 0
        kept = prefix == "short" and STATUS.get(name) != 400 and short_way_remembers(data)
        assert (server.heads.get(data) is not None) == kept
    assert got[0] == got[1]
    last = [answer for answer in got[0][-1] if answer != b"closed"][-1]
    assert int(last[9:12]) == STATUS.get(name, 200)


def short_way_remembers(data: bytes) -> bool:
    """One request without a body or an upgrade, that is not too long."""
    return (
        data.find(b"\r\n\r\n") == len(data) - 4
        and len(data) <= MAX_HEAD_BYTES
        and b"Upgrade:" not in data
        and b"Transfer-Encoding:" not in data
    )


# -- nothing is left behind ----------------------------------------------------------------------------


class Interrupts(Plugin):
    """Does something in the middle of a request."""

    def __init__(self, config: Any, name: str) -> None:
        super().__init__(config, name)
        self.act: Callable[[], Any] = lambda: None

    def ask(self, request: Request, redis: Redis) -> Answer | None:
        self.act()
        return None

    async def __call__(self, request: Request, call_next: Handler) -> Response:
        return await call_next(request)


class Waits(Plugin):
    """Decides by what Redis says."""

    def ask(self, request: Request, redis: Redis) -> Answer:
        return redis.ask("INCR", "waits")

    def check(self, request: Request, reply: int) -> Response | None:
        return Response(200, body=b"%d" % reply) if request.path == "/here" else None


def use(name: str) -> dict[str, str]:
    return {"use": f"tests.test_short_way:{name}"}


class Notes(Observer):
    """What was told of each request."""

    def __init__(self) -> None:
        super().__init__(Metrics())
        self.taken: list[tuple[str, int]] = []

    def record(self, request: Request, status: int, sent: int, outcome: str) -> None:
        self.taken.append((request.path, status))
        super().record(request, status, sent, outcome)


async def opened(node: Gateway) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    wire = Wire(node)
    wire.streams = await asyncio.open_connection("127.0.0.1", node.port)
    await eventually(wire.ready)
    return wire.streams


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


LEAVING: dict[str, Callable[[asyncio.StreamWriter], None]] = {
    "closes": lambda writer: writer.close(),
    "resets": reset,
    "says no more": lambda writer: writer.write_eof(),
}


@pytest.mark.parametrize("how", LEAVING)
@pytest.mark.parametrize("more", [b"", head("GET", "/here") * 3, b"GET / HT"], ids=["", "pipelined", "half a head"])
async def test_a_client_that_leaves_while_redis_thinks_is_forgotten(
    gateway: StartGateway, own_valkey: Valkey, how: str, more: bytes
) -> None:
    notes = Notes()
    config = {"redis": {"url": own_valkey.url, "timeout": 10}, "plugins": {"waits": use("Waits")}}
    node = await gateway(config, short_way=True, observer=notes)
    server = node.worker.server
    _, writer = await opened(node)
    own_valkey.pause()
    writer.write(head("GET", "/here"))
    await eventually(lambda: server.in_flight == 1)
    if more:
        writer.write(more)
    LEAVING[how](writer)
    await eventually(lambda: not server.connections)
    assert server.in_flight == 0
    assert notes.taken == [("/here", 499)]
    own_valkey.resume()
    # The reply that nobody waits for any more goes to nobody else.
    _, other = streams = await opened(node)
    other.write(head("GET", "/here"))
    assert (await read_answer(streams[0], b"GET")).endswith(b"\r\n\r\n2")
    assert notes.taken == [("/here", 499), ("/here", 200)]
    assert server.in_flight == 0
    writer.close()
    other.close()


@pytest.mark.parametrize("times", [1, 3], ids=["first", "remembered"])
async def test_a_client_that_is_lost_before_the_task_begins(gateway: StartGateway, times: int) -> None:
    notes = Notes()
    node = await gateway({"plugins": {"interrupts": use("Interrupts")}}, short_way=True, observer=notes)
    server = node.worker.server
    plugin = node.plugins["interrupts"]
    assert isinstance(plugin, Interrupts)
    reader, writer = await opened(node)
    for _ in range(times - 1):
        writer.write(head("GET", "/away"))
        assert (await read_answer(reader, b"GET")).startswith(b"HTTP/1.1 200 ")

    def lose() -> None:
        for connection in server.connections:
            assert connection.transport is not None
            connection.transport.abort()

    plugin.act = lose
    writer.write(head("GET", "/away"))
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    await eventually(lambda: not server.connections)
    assert server.in_flight == 0
    assert notes.taken == [("/away", 200)] * (times - 1) + [("/away", 499)]
    writer.close()


async def test_a_client_that_leaves_while_the_upstream_thinks(gateway: StartGateway, upstream: UpstreamServer) -> None:
    async def endless(request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    upstream.answer("/endless", endless)
    notes = Notes()
    node = await gateway(short_way=True, observer=notes)
    _, writer = await opened(node)
    writer.write(head("GET", "/endless"))
    await eventually(lambda: upstream.count("/endless"))
    writer.close()
    await eventually(lambda: not node.worker.server.connections and notes.taken)
    assert notes.taken == [("/endless", 499)]
    assert node.worker.server.in_flight == 0


async def test_the_end_waits_for_who_waits_for_redis(gateway: StartGateway, own_valkey: Valkey) -> None:
    config = {"redis": {"url": own_valkey.url, "timeout": 10}, "plugins": {"waits": use("Waits")}}
    node = await gateway(config, short_way=True)
    reader, writer = await opened(node)
    own_valkey.pause()
    writer.write(head("GET", "/here"))
    await eventually(lambda: node.worker.server.in_flight == 1)
    drain = asyncio.create_task(node.worker.drain(5))
    await eventually(lambda: node.worker.server.draining)
    own_valkey.resume()
    answer = await read_answer(reader, b"GET")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nConnection: close\r\n" in answer
    assert await reader.read() == b""
    assert await drain
    writer.close()


async def test_what_comes_while_redis_thinks_is_answered_in_its_turn(gateway: StartGateway, own_valkey: Valkey) -> None:
    config = {"redis": {"url": own_valkey.url, "timeout": 10}, "plugins": {"waits": use("Waits")}}
    node = await gateway(config, short_way=True)
    reader, writer = await opened(node)
    own_valkey.pause()
    writer.write(head("GET", "/here"))
    await eventually(lambda: node.worker.server.in_flight == 1)
    writer.write(head("GET", "/here") + head("GET", "/there") + head("GET", "/here")[:9])
    writer.write(head("GET", "/here")[9:])
    own_valkey.resume()
    answers = [await read_answer(reader, b"GET") for _ in range(4)]
    assert [answer.rpartition(b"\r\n\r\n")[2][:16] for answer in answers] == [b"1", b"2", b'{"path": "/there', b"4"]
    assert node.worker.server.in_flight == 0
    writer.close()


@pytest.mark.parametrize("mirror", ["64 MiB", 0], ids=["from memory", "from Redis"])
async def test_a_thousand_hits_leave_nothing_for_the_garbage_collector(
    gateway: StartGateway, upstream: UpstreamServer, redis_client: redis.asyncio.Redis, mirror: Any
) -> None:
    answers_of(upstream)
    config = configuration("gateway", upstream.port)
    config["redis"]["mirror"] = {"max_bytes": mirror}
    node = await gateway(config, short_way=True, observer=Notes())
    session = await create_session_async(redis_client, "alice")
    request = head("GET", "/all/a", b"Cookie: session=" + session.encode(), b"Authorization: Bearer " + TOKEN.encode())
    reader, writer = await opened(node)

    async def hit(times: int) -> None:
        for _ in range(times):
            writer.write(request)
            async with asyncio.timeout(5):
                answer = await reader.readuntil(b"cached /all/a")
        assert b"X-Cache: HIT" in answer

    await hit(10)
    gc.collect()
    gc.disable()
    try:
        await hit(1000)
        found = gc.collect()
    finally:
        gc.enable()
    assert found < 100, f"{found} objects in cycles"
    writer.close()
