"""Interim answers (RFC 9110, section 15.2; RFC 8297): passed on at once, never where they could be misunderstood."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.upstream.forward import MAX_INTERIM
from gateway.wire import send_interim
from tests.harness import eventually
from tests.upstream.conftest import Front
from tests.upstream.raw import OK, Conversation, answering, exchange, raw_client
from tests.upstream.test_forward import Seen

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
PASSED_ON = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nVia: 1.1 gateway\r\n\r\n"
PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"

IN_BACKGROUND = """
import asyncio

from gateway.plugin import Plugin, Response

class InBackground(Plugin):
    done = 0

    async def __call__(self, request, call_next):
        async def fetch():
            await call_next(request)
            self.done += 1

        self.task = asyncio.create_task(fetch())
        return Response(body=b"early")
"""

KEPT = """
from gateway.plugin import Plugin, Response

class Kept(Plugin):
    def check(self, request, reply):
        self.request = request
        return Response(body=b"early")
"""


def in_turn(*answers: bytes) -> Any:
    """On each connection: these answers, one for each request."""

    async def talk(peer: Conversation) -> None:
        for answer in answers:
            await peer.head()
            await peer.send(answer)
        await peer.reader.read(-1)

    return talk


async def read_head(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(5):
        return await reader.readuntil(b"\r\n\r\n")


@pytest.mark.parametrize("kept", [False, True], ids=["new connection", "kept connection"])
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST"])
@pytest.mark.parametrize("short_way", [True, False], ids=["short way", "aiohttp's way"])
async def test_hints_reach_the_client_while_the_answer_is_made(front: Front, kept, method, short_way):
    go_on = asyncio.Event()

    async def talk(peer: Conversation):
        if kept:
            await peer.head()
            await peer.send(OK)
        await peer.head()
        await peer.send(HINTS)
        await go_on.wait()
        await peer.send(OK.removesuffix(b"ok") if method == b"HEAD" else OK)

    gateway, raw = await front(talk, options={"short_way": short_way})
    async with raw_client(gateway.port) as (reader, writer):
        if kept:
            writer.write(GET)
            assert (await read_head(reader)).startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(2) == b"ok"
        writer.write(LAST.replace(b"GET", method))
        assert await read_head(reader) == PASSED_ON
        go_on.set()
        head = await read_head(reader)
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert b"Link" not in head
        assert await reader.read(-1) == (b"" if method == b"HEAD" else b"ok")
    assert raw.connections == 1


async def test_an_upload_may_get_hints_and_its_100_is_the_servers(front: Front):
    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n" + PROCESSING)
        await peer.reader.readexactly(4)
        await peer.send(HINTS + OK)

    gateway, _ = await front(talk)
    fields = b"Host: a\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    async with raw_client(gateway.port) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\n" + fields)
        assert await read_head(reader) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert await read_head(reader) == b"HTTP/1.1 102 Processing\r\nVia: 1.1 gateway\r\n\r\n"
        writer.write(b"body")
        assert await read_head(reader) == PASSED_ON
        assert (await read_head(reader)).startswith(b"HTTP/1.1 200")


async def test_their_fields_are_cleaned_like_an_answers(front: Front):
    fields = b"Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nContent-Length: 9\r\nX-End: 2\r\n"
    gateway, _ = await front(answering(b"HTTP/1.1 103 Early Hints\r\n" + fields + b"\r\n" + OK))
    async with raw_client(gateway.port) as (reader, writer):
        writer.write(LAST)
        assert await read_head(reader) == b"HTTP/1.1 103 Early Hints\r\nX-End: 2\r\nVia: 1.1 gateway\r\n\r\n"
        assert (await read_head(reader)).startswith(b"HTTP/1.1 200")


async def test_a_1_0_client_gets_the_answer_only(front: Front):
    gateway, _ = await front(answering(HINTS + OK))
    head, body = await exchange(gateway.port, b"GET / HTTP/1.0\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert body == b"ok"


async def test_pipelined_requests_get_their_own_hints_in_their_turn(front: Front):
    gateway, _ = await front(
        in_turn(
            *(HINTS.replace(b"a.css", b"%d.css" % number) + OK.replace(b"ok", b"o%d" % number) for number in (1, 2))
        )
    )
    async with raw_client(gateway.port) as (reader, writer):
        writer.write(GET + LAST)
        for number in (b"1", b"2"):
            assert await read_head(reader) == PASSED_ON.replace(b"a.css", number + b".css")
            assert (await read_head(reader)).startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(2) == b"o" + number


async def test_they_are_no_answer_in_the_log(front: Front):
    seen = Seen()
    gateway, _ = await front(answering(PROCESSING + HINTS + OK), options={"observer": seen})
    await exchange(gateway.port, LAST)
    await eventually(lambda: seen.requests)
    assert [status for _, status, _ in seen.requests] == [200]


async def test_a_client_that_has_its_answer_hears_no_more(front: Front, tmp_path):
    (tmp_path / "in_background.py").write_text(IN_BACKGROUND)
    go_on = asyncio.Event()

    async def talk(peer: Conversation):
        while True:
            await peer.head()
            await go_on.wait()
            await peer.send(HINTS + OK)

    table = {"in_background": {"use": "in_background:InBackground"}}
    gateway, _ = await front(talk, plugins=table, options={"folder": tmp_path})
    async with raw_client(gateway.port) as (reader, writer):
        writer.write(GET)
        assert (await read_head(reader)).startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(5) == b"early"
        go_on.set()
        await eventually(lambda: gateway.plugins["in_background"].done)
        writer.write(LAST)
        assert (await read_head(reader)).startswith(b"HTTP/1.1 200")
        assert await reader.read(-1) == b"early"


async def test_nor_does_one_that_had_its_answer_at_once(front: Front, tmp_path):
    (tmp_path / "kept.py").write_text(KEPT)
    gateway, _ = await front(answering(OK), plugins={"kept": {"use": "kept:Kept"}}, options={"folder": tmp_path})
    async with raw_client(gateway.port) as (reader, writer):
        for _ in range(2):
            writer.write(GET)
            assert (await read_head(reader)).startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(5) == b"early"
            send_interim(gateway.plugins["kept"].request, 103, b"Link: </a.css>\r\n")


async def test_a_cached_answer_has_no_hints_and_who_waits_for_anothers_fetch_gets_none(front: Front):
    go_on = asyncio.Event()
    answer = OK.replace(b"\r\n\r\n", b"\r\nCache-Control: max-age=60\r\n\r\n")

    async def talk(peer: Conversation):
        while True:
            await peer.head()
            await peer.send(HINTS)
            await go_on.wait()
            await peer.send(answer)

    gateway, raw = await front(talk, plugins={"cache": {}})
    async with raw_client(gateway.port) as (leader, writer):
        writer.write(LAST)
        assert await read_head(leader) == PASSED_ON
        waiting = asyncio.create_task(exchange(gateway.port, LAST))
        await eventually(lambda: gateway.worker.server.in_flight == 2)
        go_on.set()
        for head in (await read_head(leader), (await waiting)[0], (await exchange(gateway.port, LAST))[0]):
            assert head.startswith(b"HTTP/1.1 200")
            assert b"Link" not in head
    assert len(raw.heads) == 1


async def test_a_client_that_leaves_the_fetch_of_others_does_not_disturb_it(front: Front):
    go_on = asyncio.Event()
    answer = OK.replace(b"\r\n\r\n", b"\r\nCache-Control: max-age=60\r\n\r\n")

    async def talk(peer: Conversation):
        await peer.head()
        await go_on.wait()
        await peer.send(HINTS + answer)

    gateway, raw = await front(talk, plugins={"cache": {}})
    async with raw_client(gateway.port) as (_, writer):
        writer.write(LAST)
        await eventually(lambda: raw.heads)
        waiting = asyncio.create_task(exchange(gateway.port, LAST))
        await eventually(lambda: gateway.worker.server.in_flight == 2)
    await eventually(lambda: gateway.worker.server.in_flight == 1)
    go_on.set()
    head, body = await waiting
    assert head.startswith(b"HTTP/1.1 200")
    assert body == b"ok"
    assert len(raw.heads) == 1


async def test_a_client_that_takes_nothing_is_not_sent_more_and_more(front: Front):
    """What is written to a client is bounded: hints are left out once what it has not taken is too much."""
    long = b"HTTP/1.1 103 Early Hints\r\n" + (b"Link: <" + b"a" * 8000 + b">\r\n") * 250 + b"\r\n"

    async def talk(peer: Conversation):
        await peer.head()
        for _ in range(MAX_INTERIM):
            await peer.send(long)
        await peer.send(OK)

    gateway, _ = await front(talk, upstream={"max_header": "16 KiB"})
    async with raw_client(gateway.port) as (reader, writer):
        writer.write(LAST)
        await eventually(lambda: gateway.worker.server.connections)
        (connection,) = gateway.worker.server.connections
        await eventually(lambda: connection._paused)
        async with asyncio.timeout(5):
            received = await reader.read(-1)
    assert received.endswith(b"ok")
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 1
    assert received.count(b"HTTP/1.1 103 ") < MAX_INTERIM


@pytest.mark.parametrize("first", [b"", OK], ids=["new connection", "kept connection"])
@pytest.mark.parametrize(
    ("early", "passed_on"),
    [
        (PROCESSING * (MAX_INTERIM + 1), MAX_INTERIM),
        (HINTS + b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", 1),
        # aiohttp's parser would take the answer for its body.
        (b"HTTP/1.1 104 Upload\r\nContent-Length: 40\r\n\r\n", 0),
        (b"HTTP/1.1 104 Upload\r\nTransfer-Encoding: chunked\r\n\r\n28\r\n", 0),
        (b"HTTP/1.1 103 Early Hints\r\nLink: a\x01b\r\n\r\n", 0),
        (b"HTTP/1.1 103 Early Hints\r\nLink: a\rb: c\r\n\r\n", 0),
        (b"HTTP/1.1 103 Early Hints\r\n" + b"A: b\r\n" * 300 + b"\r\n", 0),
    ],
    ids=["too many", "101", "length", "chunked", "control character", "bare CR", "too many fields"],
)
async def test_unusable_ones_are_502(front: Front, first, early, passed_on):
    gateway, raw = await front(in_turn(*([first] if first else []), early + OK))
    if first:
        assert (await exchange(gateway.port, LAST))[1] == b"ok"
    async with raw_client(gateway.port) as (reader, writer):
        writer.write(LAST)
        heads = [await read_head(reader) for _ in range(passed_on + 1)]
    assert all(head.startswith(b"HTTP/1.1 10") for head in heads[:-1])
    assert heads[-1].startswith(b"HTTP/1.1 502")
    assert raw.connections == 1, "asked once"
