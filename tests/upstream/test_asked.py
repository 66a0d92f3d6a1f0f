"""Requests that meet a kept connection: sent at once, answered by a callback, taken over by a task where need be."""

from __future__ import annotations

import asyncio
import gc

import pytest

from gateway import config
from gateway.upstream.forward import Upstream
from tests.harness import eventually
from tests.requests import bare_request
from tests.upstream.conftest import Front
from tests.upstream.raw import OK, Conversation, answering, exchange, raw_client, raw_upstream
from tests.upstream.test_forward import CUT, GARBAGE, Seen

HEAD = b" / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n"
GET = b"GET" + HEAD


def second(answer: bytes):
    """A good answer to the first request of each connection, `answer` to the second, then the end."""

    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(OK)
        await peer.head()
        await peer.send(answer)

    return talk


def plain_request(method="GET"):
    return bare_request(method, headers=((b"Host", b"a"),))


@pytest.mark.parametrize("answer", [answer for name, answer in GARBAGE.items() if name != "closed"])
async def test_an_unusable_answer_on_a_kept_connection_is_502(front: Front, answer):
    gateway, raw = await front(second(answer))
    assert (await exchange(gateway.port, GET))[1] == b"ok"
    head, body = await exchange(gateway.port, GET)
    assert head.startswith(b"HTTP/1.1 502")
    assert b"Set-Cookie" not in head + body
    assert len(raw.heads) == 2, "asked once"


@pytest.mark.parametrize("start", [start for start, _, _ in CUT.values()], ids=CUT)
async def test_an_answer_that_breaks_off_on_a_kept_connection_does_not_look_complete(front: Front, start):
    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(OK)
        await peer.head()
        await peer.send(start)
        await asyncio.sleep(0.05)
        peer.writer.transport.abort()

    gateway, _ = await front(talk)
    assert (await exchange(gateway.port, GET))[1] == b"ok"
    head, body = await exchange(gateway.port, GET)
    assert head.startswith(b"HTTP/1.1 200")
    if b"\r\n\r\n" in start and b"Length" not in start and b"chunked" not in start:
        return  # such a body ends with its connection, and an abort without unread data looks like an end
    assert not body.endswith(b"0\r\n\r\n")
    await eventually(lambda: gateway.worker.upstreams["default"].failures == 1)


@pytest.mark.parametrize(
    ("method", "status", "connections"), [(b"GET", b"200", 2), (b"DELETE", b"200", 2), (b"POST", b"502", 1)]
)
async def test_a_kept_connection_closed_under_the_request_is_tried_again_where_that_is_safe(
    front: Front, method, status, connections
):
    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(OK)
        await peer.head()
        if peer.number > 1:
            await peer.send(OK)

    gateway, raw = await front(talk)
    assert (await exchange(gateway.port, GET))[1] == b"ok"
    head, _ = await exchange(gateway.port, method + HEAD)
    assert head.split(b" ")[1] == status
    assert raw.connections == connections


async def test_a_kept_connection_that_stays_silent_is_504(front: Front):
    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(OK)
        await peer.reader.read(-1)

    seen = Seen()
    gateway, raw = await front(talk, upstream={"read_timeout": 0.1}, options={"observer": seen})
    assert (await exchange(gateway.port, GET))[1] == b"ok"
    assert (await exchange(gateway.port, GET))[0].startswith(b"HTTP/1.1 504")
    await asyncio.wait_for(raw.lost.wait(), 5)
    upstream = gateway.worker.upstreams["default"]
    assert (upstream.requests, upstream.failures, upstream.timeouts) == (2, 1, 1)
    assert 0.05 < seen.requests[1][0].upstream_seconds < 5


async def test_a_client_that_leaves_ends_the_upstreams_work_on_a_kept_connection(front: Front):
    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(OK)
        await peer.head()
        await peer.reader.read(-1)

    seen = Seen()
    gateway, raw = await front(talk, upstream={"max_connections": 1}, options={"observer": seen})
    assert (await exchange(gateway.port, GET))[1] == b"ok"
    async with raw_client(gateway.port) as (_, writer):
        writer.write(GET)
        await eventually(lambda: len(raw.heads) == 2)
    await asyncio.wait_for(raw.lost.wait(), 5)
    await eventually(lambda: len(seen.requests) == 2)
    assert seen.requests[1][1] == 499
    assert seen.requests[1][0].upstream_seconds > 0
    assert (await exchange(gateway.port, GET))[1] == b"ok", "its place is free again"


async def test_an_answer_to_a_request_that_is_not_sent_yet_ends_the_connection():
    """Bytes that are there before the request are an answer to nothing."""
    go_on = asyncio.Event()

    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(OK)
        if peer.number == 1:
            await go_on.wait()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        await peer.head()
        await peer.send(OK)

    async with raw_upstream(talk) as raw:
        upstream = Upstream("api", config.Upstream(url=raw.url))
        assert (await upstream(plain_request())).body == b"ok"
        request = plain_request()
        request.asked = upstream.begin(request)
        request.asked.connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        assert await request.asked is None
        assert (await upstream(request)).body == b"ok", "on another connection"
        assert raw.connections == 2
        await upstream.stop()


async def test_whoever_awaits_and_is_cancelled_closes_the_connection():
    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(OK)
        await peer.reader.read(-1)

    async with raw_upstream(talk) as raw:
        upstream = Upstream("api", config.Upstream(url=raw.url))
        assert (await upstream(plain_request())).body == b"ok"
        asked = upstream.begin(plain_request())

        async def wait():
            return await asked

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert waiting.cancelled()
        await asyncio.wait_for(raw.lost.wait(), 5)
        await upstream.stop()


@pytest.mark.parametrize("change", ["body", "upgrade"])
async def test_a_request_with_a_body_or_an_upgrade_needs_a_task(change):
    async with raw_upstream(answering(OK)) as raw:
        upstream = Upstream("api", config.Upstream(url=raw.url))
        assert upstream.begin(plain_request()) is None, "no connection is open"
        assert (await upstream(plain_request())).body == b"ok"
        request = plain_request()
        setattr(request, change, "chat")
        assert upstream.begin(request) is None
        assert upstream.requests == 1
        await upstream.stop()


async def test_requests_leave_nothing_for_the_garbage_collector(front: Front):
    """A circle per request costs as much as half of its way, and stops the worker now and then."""
    gateway, _ = await front(answering(OK))

    async def get(times: int):
        async with raw_client(gateway.port) as (reader, writer):
            for _ in range(times):
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")

    await get(5)
    gc.collect()
    gc.disable()
    try:
        await get(200)
        assert gc.collect() < 200
    finally:
        gc.enable()
