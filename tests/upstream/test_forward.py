"""Requests and answers through a gateway, seen as bytes on both sides."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import struct

import aiohttp
import pytest
from aiohttp import web

from tests.harness import eventually, free_port
from tests.upstream.conftest import Front
from tests.upstream.raw import OK, Conversation, answering, exchange, lines_of, raw_client

NOTHING = b"HTTP/1.1 204 No Content\r\n\r\n"

SET_USER = """
from gateway.plugin import Plugin

class Who(Plugin):
    async def __call__(self, request, call_next):
        request.set_header("X-User-Id", "42")
        request.remove_header("X-Role")
        return await call_next(request)
"""


class Seen:
    """An observer that keeps the requests it was told of."""

    def __init__(self):
        self.requests = []

    def record(self, request, status, size, outcome):
        self.requests.append((request, status, outcome))

    def record_unparsed(self, client, status, outcome): ...


def get(path=b"/", *fields, method=b"GET"):
    lines = [method + b" " + path + b" HTTP/1.1", b"Host: a.example", b"Connection: close", *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"


# -- requests --------------------------------------------------------------------------------------


async def test_a_request_reaches_the_upstream_byte_for_byte(front: Front):
    gateway, raw = await front(answering(OK))
    fields = (
        b"X-Many: 1",
        b"accept: text/html;q=0.8",
        b"x-many: two, three",
        b"X-Latin: caf\xe9",
        b"X-Empty: ",
        b"X-Many: 1",
        b"Cookie: a=b; c=%20d",
    )
    await exchange(gateway.port, get(b"/%7Ea/%2e%2F;p//b?x=%20+&&y=%c3%a9&x=1?2", *fields))
    sent = lines_of(raw.heads[0])
    assert sent[0] == b"GET /%7Ea/%2e%2F;p//b?x=%20+&&y=%c3%a9&x=1?2 HTTP/1.1"
    assert sent[1:9] == [b"Host: a.example", *fields]


@pytest.mark.parametrize("method", [b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"PROPFIND", b"TRACE"])
async def test_all_methods_pass(front: Front, method):
    gateway, raw = await front(answering(OK))
    head, body = await exchange(gateway.port, get(b"/m", method=method))
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert body == b"ok"
    assert raw.heads[0].startswith(method + b" /m HTTP/1.1\r\n")


async def test_hop_by_hop_fields_and_what_connection_names_end_at_the_gateway(front: Front):
    gateway, raw = await front(answering(OK))
    request = (
        b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close, X-Mine\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\n"
        b"Trailer: X-T\r\nProxy-Authorization: Basic x\r\nProxy-Connection: keep-alive\r\nX-Mine: 1\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAAP__\r\nX-Kept: 1\r\n\r\n"
    )
    await exchange(gateway.port, request)
    names = [line.partition(b":")[0].lower() for line in lines_of(raw.heads[0])[1:]]
    own = [b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded", b"via"]
    assert names == [b"host", b"x-kept", *own]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("keep", b"a.example"), ("upstream", b"localhost:%d"), ("inner.example", b"inner.example")],
)
async def test_host_is_kept_or_set_by_configuration(front: Front, setting, expected):
    gateway, raw = await front(answering(OK), upstream={"host": setting})
    await exchange(gateway.port, get())
    expected = expected % raw.port if b"%d" in expected else expected
    hosts = [line for line in lines_of(raw.heads[0]) if line.lower().startswith(b"host:")]
    assert hosts == [b"Host: " + expected]
    assert b"X-Forwarded-Host: a.example" in lines_of(raw.heads[0])


async def test_an_upstreams_path_is_put_in_front(front: Front, gateway, upstream, http):
    node = await gateway({"upstreams": {"default": {"url": upstream.url + "/api/"}}})
    await http.get(node.url + "/users?a=1")
    assert upstream.requests[0].target == "/api/users?a=1"


async def test_an_absolute_target_is_sent_as_a_path_with_its_own_host(front: Front):
    gateway, raw = await front(answering(OK))
    await exchange(gateway.port, get(b"http://b.example/x?y"))
    assert lines_of(raw.heads[0])[:2] == [b"GET /x?y HTTP/1.1", b"Host: b.example"]


async def test_forged_forwarding_fields_do_not_reach_the_upstream(front: Front):
    gateway, raw = await front(answering(OK))
    forged = (
        b"X-Forwarded-For: 6.6.6.6",
        b"X_Forwarded_For: 6.6.6.6",
        b"x-forwarded-proto: https",
        b"X-Forwarded-Host: evil.example",
        b"X-Forwarded-Port: 666",
        b"X-Forwarded-Prefix: /evil",
        b"Forwarded: for=6.6.6.6",
    )
    await exchange(gateway.port, get(b"/", *forged))
    sent = lines_of(raw.heads[0])
    assert not [line for line in sent if b"6.6.6" in line or b"evil" in line or b"666" in line or b"https" in line]
    assert b"X-Forwarded-For: 127.0.0.1" in sent
    assert b"X-Forwarded-Proto: http" in sent
    assert b"X-Forwarded-Host: a.example" in sent
    assert b"Forwarded: for=127.0.0.1;host=a.example;proto=http" in sent


async def test_a_trusted_proxys_forwarding_fields_are_continued(front: Front):
    gateway, raw = await front(answering(OK), server={"trusted_proxies": ["127.0.0.0/8"]})
    fields = (
        b"X-Forwarded-For: 203.0.113.9",
        b"X-Forwarded-For: 10.1.1.1",
        b"X-Forwarded-Proto: https",
        b"X-Forwarded-Host: shop.example",
        b"X-Forwarded-Port: 443",
        b"Via: 2 edge",
    )
    await exchange(gateway.port, get(b"/", *fields))
    sent = lines_of(raw.heads[0])
    for line in (
        b"X-Forwarded-For: 203.0.113.9, 10.1.1.1, 127.0.0.1",
        b"X-Forwarded-Proto: https",
        b"X-Forwarded-Host: shop.example",
        b"X-Forwarded-Port: 443",
        b"Via: 2 edge",
        b"Via: 1.1 gateway",
    ):
        assert sent.count(line) == 1
    assert sum(line.lower().startswith(b"x-forwarded-for") for line in sent) == 1


async def test_an_identity_field_from_outside_is_dropped_in_every_spelling(front: Front, tmp_path):
    (tmp_path / "who_for_forward.py").write_text(SET_USER)
    plugins = {"who": {"use": "who_for_forward:Who"}}
    gateway, raw = await front(answering(OK), plugins=plugins, options={"folder": tmp_path})
    forged = (b"X-User-Id: 1", b"x_user_id: 1", b"X-User_ID: 1", b"X-Role: admin", b"X_ROLE: admin")
    await exchange(gateway.port, get(b"/", *forged))
    sent = lines_of(raw.heads[0])
    assert [line for line in sent if b"user" in line.lower()] == [b"X-User-Id: 42"]
    assert not [line for line in sent if b"admin" in line]


# -- bodies to the upstream ------------------------------------------------------------------------


async def test_an_upload_streams_while_the_client_still_sends(front: Front):
    first_seen = asyncio.Event()

    async def talk(peer: Conversation):
        head = await peer.head()
        assert b"Content-Length: 10" in head
        assert await peer.reader.readexactly(5) == b"first"
        first_seen.set()
        assert await peer.reader.readexactly(5) == b"later"
        await peer.send(OK)

    gateway, _ = await front(talk)
    async with raw_client(gateway.port) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 10\r\n\r\nfirst")
        await asyncio.wait_for(first_seen.wait(), 5)
        writer.write(b"later")
        assert (await reader.read(-1)).endswith(b"ok")


async def test_a_chunked_upload_stays_chunked_and_loses_its_trailers(front: Front):
    async def talk(peer: Conversation):
        await peer.head()
        peer.heads.append(await peer.reader.readuntil(b"\r\n0\r\n\r\n"))
        await peer.send(OK)

    gateway, raw = await front(talk)
    chunked = b"4;ext=1\r\nwiki\r\n5\r\npedia\r\n0\r\nX-Trailer: 1\r\n\r\n"
    head, _ = await exchange(gateway.port, get(b"/", b"Transfer-Encoding: chunked", method=b"POST") + chunked)
    assert head.startswith(b"HTTP/1.1 200")
    assert b"Transfer-Encoding: chunked\r\n" in raw.heads[0]
    assert b"Content-Length" not in raw.heads[0]
    pieces = raw.heads[1].split(b"\r\n")
    assert b"".join(pieces[1:-3:2]) == b"wikipedia"
    assert b"Trailer" not in raw.heads[1]


async def test_an_empty_post_says_that_it_is_empty(front: Front):
    gateway, raw = await front(answering(OK))
    await exchange(gateway.port, get(b"/", b"Content-Length: 0", method=b"POST"))
    assert b"\r\nContent-Length: 0\r\n" in raw.heads[0]


async def test_expect_continue_is_answered_by_the_gateway(front: Front):
    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(OK if await peer.reader.readexactly(4) == b"body" else b"")

    gateway, raw = await front(talk)
    async with raw_client(gateway.port) as (reader, writer):
        writer.write(b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"body")
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 200 OK")
    assert b"xpect" not in raw.heads[0]


async def test_an_answer_before_the_body_is_complete_is_passed_on_at_once(front: Front):
    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await peer.reader.read(-1)

    gateway, raw = await front(talk)
    async with raw_client(gateway.port) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nonly a part")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 413 Content Too Large")
        assert await reader.readexactly(3) == b"big"
        # The request was not wholly sent: nothing else may follow on this connection.
        await asyncio.wait_for(raw.lost.wait(), 5)


async def test_both_bodies_stream_at_the_same_time(front: Front):
    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            size = int(await peer.reader.readline(), 16)
            piece = await peer.reader.readexactly(size + 2)
            await peer.send(b"%x\r\n%b" % (size, piece))
        await peer.send(b"0\r\n\r\n")

    gateway, _ = await front(talk)
    async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(5):
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for word in (b"one", b"two", b"six"):
            writer.write(b"3\r\n%b\r\n" % word)
            await reader.readuntil(b"3\r\n%b\r\n" % word)
        await reader.readuntil(b"0\r\n\r\n")


async def test_a_client_that_breaks_its_body_off_gets_no_answer_and_the_upstream_no_whole_request(front: Front):
    ended = asyncio.Event()

    async def talk(peer: Conversation):
        await peer.head()
        await peer.reader.read(-1)
        ended.set()

    gateway, raw = await front(talk)
    async with raw_client(gateway.port) as (_, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\npart")
        await eventually(lambda: raw.heads)
    await asyncio.wait_for(ended.wait(), 5)


@pytest.mark.parametrize(
    ("server", "body", "status"),
    [
        ({"max_body": 10}, b"8\r\n12345678\r\n8\r\n12345678\r\n0\r\n\r\n", b"413"),
        ({"body_timeout": 0.05}, b"8\r\n12345678\r\n", b"408"),
        ({}, b"8\r\n12345678\r\nnonsense\r\n", b"400"),
    ],
)
async def test_a_bad_body_is_the_clients_fault_and_closes_the_upstreams_connection(front: Front, server, body, status):
    async def talk(peer: Conversation):
        await peer.head()
        await peer.reader.read(-1)

    gateway, raw = await front(talk, server=server)
    async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(5):
        writer.write(get(b"/", b"Transfer-Encoding: chunked", method=b"POST"))
        await eventually(lambda: raw.heads)
        writer.write(body)
        assert (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1] == status
    await asyncio.wait_for(raw.lost.wait(), 5)
    assert gateway.worker.upstreams["default"].failures == 0


# -- answers ---------------------------------------------------------------------------------------


async def test_an_answer_reaches_the_client_byte_for_byte(front: Front):
    fields = (
        b"set-cookie: a=1",
        b"Content-Encoding: gzip",
        b"X-Latin: caf\xe9",
        b"Set-Cookie: b=2; Path=/",
        b"Date: Thu, 01 Jan 1970 00:00:00 GMT",
        b"Location: http://a.example/%20?x",
        b"Via: 1.0 inner",
    )
    answer = (
        b"HTTP/1.1 299 Quite Fine\r\n" + b"".join(line + b"\r\n" for line in fields) + b"Content-Length: 4\r\n"
        b"Connection: X-Mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=9\r\nUpgrade: h2c\r\nTrailer: X-T\r\n\r\n"
        b"\x1f\x8b\x00\x01"
    )
    gateway, _ = await front(answering(answer))
    head, body = await exchange(gateway.port, get())
    assert lines_of(head) == [
        b"HTTP/1.1 299 Quite Fine",
        *fields,
        b"Via: 1.1 gateway",
        b"Content-Length: 4",
        b"Connection: close",
    ]
    assert body == b"\x1f\x8b\x00\x01"


async def test_a_folded_field_of_an_answer_becomes_one_line(front: Front):
    gateway, _ = await front(answering(b"HTTP/1.1 200 OK\r\nX-A: a\r\n Set-Cookie: b=1\r\nContent-Length: 2\r\n\r\nok"))
    head, _ = await exchange(gateway.port, get())
    assert b"X-A: a Set-Cookie: b=1" in lines_of(head)


async def test_the_first_piece_arrives_before_the_second_is_sent(front: Front):
    first_arrived = asyncio.Event()

    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"a" * 100_000)
        await first_arrived.wait()
        await peer.send(b"b" * 100_000)

    gateway, _ = await front(talk)
    async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(5):
        writer.write(get())
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Content-Length: 200000\r\n" in head
        assert await reader.readexactly(100_000) == b"a" * 100_000
        first_arrived.set()
        assert await reader.read(-1) == b"b" * 100_000


async def test_a_small_body_that_comes_in_two_packets_or_slowly_is_whole(front: Front, gateway, upstream, http):
    go_on = asyncio.Event()

    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        if peer.number == 1:
            await go_on.wait()
        await peer.send(b"slow")

    front_node, _ = await front(talk)
    async with raw_client(front_node.port) as (reader, writer), asyncio.timeout(5):
        writer.write(get())
        await reader.readuntil(b"\r\n\r\n")  # does not wait for the body for long
        go_on.set()
        assert await reader.read(-1) == b"slow"
    assert (await exchange(front_node.port, get()))[1] == b"slow"


async def test_server_sent_events_come_one_by_one(gateway, upstream, http):
    sent, seen = asyncio.Event(), asyncio.Event()

    async def events(request: web.Request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        sent.set()
        for number in range(3):
            await response.write(b"data: %d\n\n" % number)
            await seen.wait()
            seen.clear()
        return response

    upstream.answer("/events", events)
    node = await gateway()
    async with http.get(node.url + "/events") as response, asyncio.timeout(5):
        assert sent.is_set()
        for number in range(3):
            assert await response.content.readuntil(b"\n\n") == b"data: %d\n\n" % number
            seen.set()
        assert await response.content.read() == b""


async def test_an_event_streams_head_does_not_wait_for_the_first_event(front: Front):
    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await peer.reader.read(-1)

    gateway, _ = await front(talk)
    async with raw_client(gateway.port) as (reader, writer):
        writer.write(get())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert b"Transfer-Encoding: chunked" in head


async def test_a_chunked_answer_stays_chunked_and_loses_its_trailers(front: Front):
    go_on = asyncio.Event()

    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n4\r\nwiki\r\n")
        await go_on.wait()
        await peer.send(b"5\r\npedia\r\n0\r\nX-T: 1\r\n\r\n")

    gateway, _ = await front(talk)
    async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(5):
        writer.write(get())
        head = await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(9) == b"4\r\nwiki\r\n"
        go_on.set()
        assert await reader.read(-1) == b"5\r\npedia\r\n0\r\n\r\n"
    assert b"Trailer" not in head


async def test_a_body_that_ends_with_the_connection_is_passed_on(front: Front):
    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")

    gateway, _ = await front(talk)
    head, body = await exchange(gateway.port, get())
    assert b"chunked" in head
    assert body == b"d\r\nuntil the end\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "answer", "framing"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n", b"Content-Length: 1234"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None),
        (b"GET", b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n", None),
        (b"GET", b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\nContent-Length: 99\r\n\r\n', b"Content-Length: 99"),
        (b"GET", b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n', None),
    ],
)
async def test_answers_without_a_body_keep_their_head_and_the_connection(front: Front, method, answer, framing):
    gateway, raw = await front(answering(answer))
    for _ in range(2):
        head, body = await exchange(gateway.port, get(method=method))
        assert body == b""
        assert head.startswith(answer.partition(b"\r\n")[0])
        lengths = [line for line in lines_of(head) if line.startswith(b"Content-Length")]
        assert lengths == ([framing] if framing else [])
    assert raw.connections == 1


async def test_a_head_request_between_others_does_not_confuse_their_connection(front: Front):
    async def talk(peer: Conversation):
        while True:
            head = await peer.head()
            await peer.send(OK.removesuffix(b"ok") if head.startswith(b"HEAD") else OK)

    gateway, raw = await front(talk)
    for method, expected in ((b"GET", b"ok"), (b"HEAD", b""), (b"GET", b"ok"), (b"HEAD", b""), (b"HEAD", b"")):
        assert (await exchange(gateway.port, get(method=method)))[1] == expected
    assert raw.connections == 1


async def test_a_slow_client_slows_the_upstream_down(front: Front):
    total, piece = 48 << 20, bytes(64 << 10)
    written = 0

    async def talk(peer: Conversation):
        nonlocal written
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        while written < total:
            await peer.send(piece)
            written += len(piece)

    gateway, _ = await front(talk)
    async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(10):
        writer.write(get())
        await reader.readuntil(b"\r\n\r\n")
        before = -1
        while written != before:  # until nothing moves any more
            before = written
            await asyncio.sleep(0.1)
        assert written < total, "what does not fit into the kernel is not taken"
        assert gateway.worker.upstreams["default"].connections == 1
        received = 0
        while data := await reader.read(1 << 20):
            received += len(data)
    assert received == total


async def test_a_slow_upstream_slows_the_client_down(front: Front):
    total = 48 << 20
    go_on = asyncio.Event()

    async def talk(peer: Conversation):
        await peer.head()
        await go_on.wait()
        left = total
        while left:
            left -= len(await peer.reader.read(1 << 20))
        await peer.send(OK)

    gateway, _ = await front(talk)
    async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(10):
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % total)
        written = 0

        async def upload():
            nonlocal written
            while written < total:
                writer.write(bytes(64 << 10))
                written += 64 << 10
                await writer.drain()

        uploading = asyncio.create_task(upload())
        before = -1
        while written != before:
            before = written
            await asyncio.sleep(0.1)
        assert written < total, "what does not fit into the kernel is not taken"
        go_on.set()
        assert (await reader.read(-1)).endswith(b"ok")
        await uploading


# -- failures --------------------------------------------------------------------------------------


def problem_of(head: bytes, body: bytes) -> tuple[int, dict]:
    """The status and the problem document, after seeing that it gives nothing away."""
    assert b"Content-Type: application/problem+json" in head
    document = json.loads(body)
    assert set(document) == {"type", "title", "status", "detail"}
    assert not any(word in body.lower() for word in (b"localhost", b"127.0.0.1", b"errno", b"refused", b"default"))
    assert int(head.split(b" ")[1]) == document["status"]
    return document["status"], document


async def test_an_upstream_that_is_not_there_is_502(gateway, caplog):
    caplog.set_level(logging.WARNING, "gateway.upstream")
    node = await gateway({"upstreams": {"default": {"url": f"http://127.0.0.1:{free_port()}"}}})
    for _ in range(5):
        status, document = problem_of(*await exchange(node.port, get()))
        assert (status, document["title"]) == (502, "Bad Gateway")
    upstream = node.worker.upstreams["default"]
    assert (upstream.requests, upstream.failures, upstream.timeouts, upstream.connections) == (5, 5, 0, 0)
    lines = [record.getMessage() for record in caplog.records if record.name == "gateway.upstream"]
    assert len(lines) == 1, "not a line per request"
    assert lines[0].startswith("upstream default: Cannot connect to host 127.0.0.1:")


async def test_a_name_that_does_not_exist_is_502(gateway):
    node = await gateway({"upstreams": {"default": {"url": "http://no-such-name.invalid"}}})
    assert problem_of(*await exchange(node.port, get()))[0] == 502


async def test_a_silent_upstream_is_504(front: Front):
    async def talk(peer: Conversation):
        await peer.head()
        await peer.reader.read(-1)

    gateway, raw = await front(talk, upstream={"read_timeout": 0.1})
    status, document = problem_of(*await exchange(gateway.port, get()))
    assert (status, document["title"]) == (504, "Gateway Timeout")
    await asyncio.wait_for(raw.lost.wait(), 5)
    assert gateway.worker.upstreams["default"].timeouts == 1


async def test_an_upstream_that_takes_no_body_is_504(front: Front):
    async def talk(peer: Conversation):
        await peer.head()
        await asyncio.Event().wait()

    gateway, _ = await front(talk, upstream={"read_timeout": 0.2})
    async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(5):
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000\r\n\r\n" + bytes(50_000_000))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 504")


async def test_a_slow_upload_is_not_a_silent_upstream(front: Front):
    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        await peer.reader.readexactly(4)
        await peer.send(OK)

    gateway, _ = await front(talk, upstream={"read_timeout": 0.1})
    async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(5):
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 4\r\n\r\n")
        for byte in b"body":
            await asyncio.sleep(0.06)
            writer.write(bytes([byte]))
        assert (await reader.read(-1)).endswith(b"ok")


async def test_no_free_connection_within_connect_timeout_is_504(front: Front):
    busy = asyncio.Event()

    async def talk(peer: Conversation):
        await peer.head()
        busy.set()
        await peer.reader.read(-1)

    gateway, raw = await front(talk, upstream={"max_connections": 1, "connect_timeout": 0.1})
    async with raw_client(gateway.port) as (_, writer):
        writer.write(get())
        await busy.wait()
        assert problem_of(*await exchange(gateway.port, get()))[0] == 504
    assert raw.connections == 1


GARBAGE = {
    "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "closed": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "both framings": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "both, reversed": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    "bad length": b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
    "length cut": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok",
    "a control character": b"HTTP/1.1 200 OK\r\nX-A: a\x01b\r\nContent-Length: 2\r\n\r\nok",
    "NUL": b"HTTP/1.1 200 OK\r\nX-A: a\x00b\r\nContent-Length: 2\r\n\r\nok",
    "bare CR": b"HTTP/1.1 200 OK\r\nX-A: a\rSet-Cookie: b=1\r\nContent-Length: 2\r\n\r\nok",
    "space in a name": b"HTTP/1.1 200 OK\r\nX-A : a\r\nContent-Length: 2\r\n\r\nok",
    "long header": b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 20_000 + b"\r\nContent-Length: 2\r\n\r\nok",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"X-A: a\r\n" * 300 + b"Content-Length: 2\r\n\r\nok",
    "unasked 101": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    "gzip coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "gzip to the end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok",
}


@pytest.mark.parametrize("answer", GARBAGE.values(), ids=GARBAGE)
async def test_an_unusable_answer_is_502_and_nothing_of_it_is_passed_on(front: Front, answer):
    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(answer)

    gateway, raw = await front(talk)
    head, body = await exchange(gateway.port, get())
    assert problem_of(head, body)[0] == 502
    assert b"Set-Cookie" not in head
    assert b"X-A" not in head
    assert raw.connections == 1, "asked once"


CUT = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"a" * 1000, b"", False),
    "chunked": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\n", b"", False),
    "chunked, within": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\n", b"9\r\nped", False),
    "bad chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\n", b"xyz\r\n", False),
    "to the end, reset": (b"HTTP/1.1 200 OK\r\n\r\nwiki", b"", True),
}


@pytest.mark.parametrize(("start", "rest", "reset"), CUT.values(), ids=CUT)
async def test_an_answer_that_breaks_off_does_not_look_complete(front: Front, start, rest, reset):
    started = asyncio.Event()

    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(start)
        await started.wait()
        await peer.send(rest)
        if reset:
            peer.writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            peer.writer.transport.abort()

    gateway, _ = await front(talk)
    async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(5):
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        started.set()
        received = b""
        with contextlib.suppress(ConnectionError):
            received = await reader.read(-1)
    assert b"0\r\n\r\n" not in received
    assert len(received) < 2000
    await eventually(lambda: gateway.worker.upstreams["default"].failures == 1)


async def test_a_body_that_stops_is_cut_after_read_timeout(front: Front):
    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\n")
        await peer.reader.read(-1)

    gateway, _ = await front(talk, upstream={"read_timeout": 0.1})
    _, body = await exchange(gateway.port, get())
    assert body == b"4\r\nwiki\r\n"
    assert gateway.worker.upstreams["default"].timeouts == 1


async def test_a_client_that_leaves_ends_the_upstreams_work(front: Front):
    async def talk(peer: Conversation):
        await peer.head()
        await peer.reader.read(-1)

    gateway, raw = await front(talk)
    async with raw_client(gateway.port) as (_, writer):
        writer.write(get())
        await eventually(lambda: raw.heads)
    await asyncio.wait_for(raw.lost.wait(), 5)


async def test_a_client_that_leaves_within_a_stream_ends_the_upstreams_work(front: Front):
    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\n")
        await peer.reader.read(-1)

    gateway, raw = await front(talk)
    async with raw_client(gateway.port) as (reader, writer):
        writer.write(get())
        await reader.readuntil(b"wiki\r\n")
    await asyncio.wait_for(raw.lost.wait(), 5)
    await eventually(lambda: gateway.worker.upstreams["default"].connections == 0)
    assert gateway.worker.upstreams["default"].failures == 0


# -- connections -----------------------------------------------------------------------------------


async def test_a_connection_serves_request_after_request(front: Front):
    gateway, raw = await front(answering(OK))
    for _ in range(5):
        assert (await exchange(gateway.port, get()))[1] == b"ok"
    assert raw.connections == 1
    assert gateway.worker.upstreams["default"].connections == 1


async def test_a_streamed_answer_gives_its_connection_back(front: Front):
    gateway, raw = await front(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + bytes(300_000)))
    for _ in range(3):
        assert len((await exchange(gateway.port, get()))[1]) == 300_000
    assert raw.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        OK + b"HTTP/1.1 20",
    ],
)
async def test_a_connection_with_an_unclear_end_is_not_used_again(front: Front, answer):
    gateway, raw = await front(answering(answer))
    for number in range(1, 4):
        assert (await exchange(gateway.port, get()))[1] == b"ok"
        assert raw.connections == number


async def test_an_answer_nobody_asked_for_reaches_nobody(front: Front):
    unasked = asyncio.Event()

    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(OK)
        await unasked.wait()
        if peer.number == 1:
            await peer.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 4\r\n\r\nevil")
            await peer.reader.read(-1)

    gateway, raw = await front(talk)
    assert (await exchange(gateway.port, get()))[1] == b"ok"
    unasked.set()
    await asyncio.wait_for(raw.lost.wait(), 5)
    await eventually(lambda: gateway.worker.upstreams["default"].connections == 0)
    assert (await exchange(gateway.port, get()))[1] == b"ok"


async def test_keepalive_timeout_zero_opens_a_connection_per_request(front: Front):
    gateway, raw = await front(answering(OK), upstream={"keepalive_timeout": 0})
    for _ in range(2):
        await exchange(gateway.port, get())
    assert raw.connections == 2


def closes_on_second(partial: bytes = b""):
    """The first connection answers once and closes under the second request; others answer always."""

    async def talk(peer: Conversation):
        if peer.number == 1:
            await peer.head()
            await peer.send(OK)
        await peer.head()
        await peer.send(partial if peer.number == 1 else NOTHING)

    return talk


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS"])
async def test_an_idempotent_request_on_a_connection_that_was_just_closed_is_tried_again(front: Front, method):
    gateway, raw = await front(closes_on_second())
    await exchange(gateway.port, get())
    head, _ = await exchange(gateway.port, get(b"/again", method=method))
    assert head.startswith(b"HTTP/1.1 204")
    assert [head.split(b" ")[1] for head in raw.heads] == [b"/", b"/again", b"/again"]


@pytest.mark.parametrize(
    ("request_bytes", "partial"),
    [
        (get(b"/again", method=b"POST"), b""),
        (get(b"/again", b"Content-Length: 2", method=b"PUT") + b"ab", b""),
        (get(b"/again"), b"HTTP/1.1 2"),
    ],
)
async def test_what_may_have_been_done_is_not_done_twice(front: Front, request_bytes, partial):
    gateway, raw = await front(closes_on_second(partial))
    await exchange(gateway.port, get())
    assert problem_of(*await exchange(gateway.port, request_bytes))[0] == 502
    assert [head.split(b" ")[1] for head in raw.heads] == [b"/", b"/again"]


async def test_time_spent_in_the_upstream_is_told(front: Front):
    async def talk(peer: Conversation):
        await peer.head()
        await asyncio.sleep(0.05)
        await peer.send(OK)

    seen = Seen()
    gateway, _ = await front(talk, options={"observer": seen})
    await exchange(gateway.port, get())
    await eventually(lambda: seen.requests)
    request, status, outcome = seen.requests[0]
    assert (status, outcome) == (200, "pass")
    assert 0.04 < request.upstream_seconds < 2


async def test_failures_are_told_as_failed(gateway):
    seen = Seen()
    node = await gateway({"upstreams": {"default": {"url": f"http://127.0.0.1:{free_port()}"}}}, observer=seen)
    await exchange(node.port, get())
    await eventually(lambda: seen.requests)
    assert seen.requests[0][1:] == (502, "failed")


async def test_a_real_client_and_server_agree_through_the_gateway(gateway, upstream, http: aiohttp.ClientSession):
    async def echo(request: web.Request):
        return web.Response(body=await request.read(), headers={"X-Type": request.content_type})

    upstream.answer("/echo", echo)
    node = await gateway()
    for body in (b"x", bytes(70_000), bytes(1_000_000)):
        async with http.post(node.url + "/echo", data=body, headers={"Content-Type": "text/x"}) as response:
            assert await response.read() == body
            assert response.headers["X-Type"] == "text/x"
    results = await asyncio.gather(*(http.post(node.url + "/echo", data=b"%d" % n * 1000) for n in range(100)))
    assert [await result.read() for result in results] == [b"%d" % n * 1000 for n in range(100)]
