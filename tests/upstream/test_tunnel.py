"""WebSocket and other upgrades through a gateway."""

from __future__ import annotations

import asyncio
from functools import partial

import aiohttp
import pytest
from aiohttp import web

from gateway.upstream import forward
from gateway.upstream.tunnel import Tunnel
from tests.harness import eventually
from tests.upstream.conftest import Front
from tests.upstream.raw import OK, Conversation, answering, exchange, lines_of, raw_client

ASK = b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: Chat/2\r\nX-A: 1\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: Chat/2\r\nX-B: 2\r\n\r\n"


async def echo(peer: Conversation) -> None:
    await peer.head()
    await peer.send(SWITCH)
    while data := await peer.reader.read(65536):
        await peer.send(data)


@pytest.fixture
async def sockets(gateway, upstream):
    """A gateway in front of an aiohttp WebSocket server."""

    async def serve(request: web.Request):
        socket = web.WebSocketResponse(protocols=["chat"])
        await socket.prepare(request)
        async for message in socket:
            if message.data == "close":
                await socket.close(code=4001, message=b"as asked")
            elif message.type is aiohttp.WSMsgType.TEXT:
                await socket.send_str(message.data.upper())
            else:
                await socket.send_bytes(message.data[::-1])
        return socket

    upstream.answer("/ws", serve)
    return await gateway()


async def test_a_websocket_works_as_without_the_gateway(sockets, upstream, http: aiohttp.ClientSession):
    async with http.ws_connect(sockets.url + "/ws?room=%20", protocols=["chat"]) as socket:
        assert socket.protocol == "chat"
        await socket.send_str("hello")
        assert await socket.receive_str() == "HELLO"
        for size in (1, 1000, 1_000_000):
            await socket.send_bytes(bytes(size - 1) + b"x")
            assert await socket.receive_bytes() == b"x" + bytes(size - 1)
        await socket.ping()
        await socket.send_str("close")
        message = await socket.receive()
        assert (message.type, message.data, message.extra) == (aiohttp.WSMsgType.CLOSE, 4001, "as asked")
    await eventually(lambda: sockets.worker.upstreams["default"].connections == 0)


async def test_many_messages_keep_their_order(sockets, http: aiohttp.ClientSession):
    async with http.ws_connect(sockets.url + "/ws") as socket:
        for number in range(500):
            await socket.send_str(f"m{number}")
        assert [await socket.receive_str() for _ in range(500)] == [f"M{number}" for number in range(500)]


async def test_another_protocol_is_tunnelled_and_its_head_is_passed_on(front: Front):
    gateway, raw = await front(echo)
    async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(5):
        writer.write(ASK)
        head = lines_of(await reader.readuntil(b"\r\n\r\n"))
        assert head[0] == b"HTTP/1.1 101 Switching Protocols"
        assert b"Upgrade: Chat/2" in head
        assert b"Connection: Upgrade" in head
        assert b"X-B: 2" in head
        for word in (b"\x00\xff", b"GET / HTTP/1.1\r\n\r\n", b"end"):
            writer.write(word)
            assert await reader.readexactly(len(word)) == word
    sent = lines_of(raw.heads[0])
    assert sent[0] == b"GET /chat HTTP/1.1"
    assert [line for line in sent if line.startswith((b"Connection", b"Upgrade", b"X-A"))] == [
        b"X-A: 1",
        b"Connection: Upgrade",
        b"Upgrade: Chat/2",
    ]
    await asyncio.wait_for(raw.lost.wait(), 5)


async def test_bytes_right_behind_the_101_are_not_lost(front: Front):
    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(SWITCH + b"early bird")
        await peer.reader.read(-1)

    gateway, _ = await front(talk)
    async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(5):
        writer.write(ASK)
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(10) == b"early bird"


async def test_an_upstream_that_closes_right_behind_its_101_is_heard_out(front: Front):
    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(SWITCH + b"bye")

    gateway, _ = await front(talk)
    async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(5):
        writer.write(ASK)
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.read(-1) == b"bye"


async def test_an_upstream_that_has_said_all_still_listens(front: Front):
    heard = asyncio.Event()

    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(SWITCH + b"that was all")
        peer.writer.write_eof()
        assert await peer.reader.readexactly(6) == b"answer"
        heard.set()

    gateway, _ = await front(talk)
    async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(5):
        writer.write(ASK)
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.read(-1) == b"that was all"
        writer.write(b"answer")
        await heard.wait()


async def test_a_client_that_has_said_all_still_listens(front: Front):
    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(SWITCH)
        assert await peer.reader.read(-1) == b"question"
        await peer.send(b"answer")

    gateway, _ = await front(talk)
    async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(5):
        writer.write(ASK)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"question")
        writer.write_eof()
        assert await reader.read(-1) == b"answer"


async def test_an_upstream_that_refuses_the_upgrade_is_heard(front: Front):
    gateway, _ = await front(answering(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"))
    async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(5):
        writer.write(ASK)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 403 Forbidden")
        assert await reader.readexactly(2) == b"no"
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 403")


async def test_a_426_tells_the_client_which_protocol_is_asked_for(front: Front):
    answer = b"HTTP/1.1 426 Upgrade Required\r\nConnection: Upgrade\r\nUpgrade: Chat/2\r\nContent-Length: 0\r\n\r\n"
    gateway, _ = await front(answering(answer))
    head, _ = await exchange(gateway.port, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert b"Upgrade: Chat/2" in lines_of(head)


@pytest.mark.parametrize("token", [b"h2c", b"H2C", b"websocket, h2c"])
async def test_h2c_is_never_forwarded(front: Front, token):
    gateway, raw = await front(answering(OK))
    request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, close\r\nHTTP2-Settings: AAMAAABk\r\n"
    head, body = await exchange(gateway.port, request + b"Upgrade: " + token + b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert body == b"ok"
    assert not [line for line in lines_of(raw.heads[0]) if b"pgrade" in line or b"HTTP2" in line]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n",
    ],
)
async def test_a_101_that_changes_to_nothing_is_502(front: Front, answer):
    gateway, _ = await front(answering(answer))
    async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(5):
        writer.write(ASK)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 502")


async def test_tunnels_do_not_take_the_connections_of_requests(front: Front):
    async def talk(peer: Conversation):
        if b"Upgrade" in await peer.head():
            await peer.send(SWITCH)
            await peer.reader.read(-1)
        await peer.send(OK)

    gateway, _ = await front(talk, upstream={"max_connections": 1, "connect_timeout": 0.2})
    async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(5):
        writer.write(ASK)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        head, _ = await exchange(gateway.port, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        async with raw_client(gateway.port) as (second, asking):
            asking.write(ASK)
            assert (await second.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 504"), "but have a limit too"


@pytest.mark.parametrize("slow", ["client", "upstream"])
async def test_a_slow_side_slows_the_other_down_and_nothing_is_lost(front: Front, slow):
    total, piece = 48 << 20, bytes(64 << 10)
    written = 0
    go_on = asyncio.Event()
    received = asyncio.Queue[int]()

    async def produce(writer: asyncio.StreamWriter):
        nonlocal written
        while written < total:
            writer.write(piece)
            await writer.drain()
            written += len(piece)

    async def consume(reader: asyncio.StreamReader):
        await go_on.wait()
        size = 0
        while size < total:
            size += len(await reader.read(1 << 20))
        received.put_nowait(size)

    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(SWITCH)
        await (consume(peer.reader) if slow == "upstream" else produce(peer.writer))
        await peer.reader.read(-1)

    gateway, _ = await front(talk)
    async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(10):
        writer.write(ASK)
        await reader.readuntil(b"\r\n\r\n")
        ours = asyncio.create_task(consume(reader) if slow == "client" else produce(writer))
        before = -1
        while written != before:  # until nothing moves any more
            before = written
            await asyncio.sleep(0.1)
        assert written < total, "what does not fit into the kernel is not taken"
        go_on.set()
        assert await received.get() == total
        await ours


async def test_a_silent_tunnel_ends(front: Front, monkeypatch):
    monkeypatch.setattr(forward, "Tunnel", partial(Tunnel, idle=0.1))
    gateway, raw = await front(echo)
    async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(5):
        writer.write(ASK)
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(4):
            await asyncio.sleep(0.05)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x", "traffic keeps it"
        assert await reader.read(-1) == b""
        await raw.lost.wait()


async def test_a_tunnel_outlives_read_timeout(front: Front):
    gateway, _ = await front(echo, upstream={"read_timeout": 0.05})
    async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(5):
        writer.write(ASK)
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(2):
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            await asyncio.sleep(0.15)


async def test_a_half_ended_tunnel_does_not_stay_for_ever(front: Front, monkeypatch):
    monkeypatch.setattr(forward, "Tunnel", partial(Tunnel, half_closed=0.1))

    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(SWITCH)
        peer.writer.write_eof()
        await peer.reader.read(-1)

    gateway, raw = await front(talk)
    async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(5):
        writer.write(ASK)
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.read(-1) == b""
        await raw.lost.wait()


async def test_a_client_that_vanishes_ends_the_tunnel(front: Front):
    gateway, raw = await front(echo)
    async with raw_client(gateway.port) as (reader, writer):
        writer.write(ASK)
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()
    await asyncio.wait_for(raw.lost.wait(), 5)
    await eventually(lambda: gateway.worker.upstreams["default"].connections == 0)
