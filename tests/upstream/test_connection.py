"""Answers on one connection, cut into pieces anywhere: which belong to whom, and what ends the connection."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import config
from gateway.response import Response
from gateway.upstream import connection, forward
from gateway.upstream.forward import Upstream
from tests.harness import eventually
from tests.requests import bare_request
from tests.upstream.conftest import Front
from tests.upstream.raw import OK, Conversation, answering, exchange, raw_client, raw_upstream

GET = b"GET /s HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n"


async def whole(response) -> bytes:
    if isinstance(response.body, bytes):
        return response.body
    return b"".join([piece async for piece in response.body])


FRAMINGS = ["length", "chunked", "end", "close", "interim", "no content"]
EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
SURPLUS = {
    "text": b"garbage",
    "an answer": EVIL,
    "answers": EVIL * 3,
    "half a head": b"HTTP/1.1 200 OK\r\nX-Evil: 1",
    "half a body": EVIL[:-2],
    "no head": b"HTTP/1.1 200 OK\r\nX-Evil: a\x00b\r\n\r\n",
    "a head for nobody": b"HTTP/1.1 200 OK\r\nSec-WebSocket-Key1: a\r\n\r\n",
    "hints": b"HTTP/1.1 103 Early Hints\r\nX-Evil: 1\r\n\r\n",
    "much": bytes(150_000),
}


def answer_of(framing: str, tag: int, body: bytes) -> bytes:
    fields = b"X-Tag: %d\r\nX-Length: %d\r\n" % (tag, len(body))
    length = b"Content-Length: %d\r\n" % len(body)
    start = b"HTTP/1.1 200 OK\r\n" + fields
    match framing:
        case "length":
            return start + length + b"\r\n" + body
        case "close":
            return start + b"Connection: close\r\n" + length + b"\r\n" + body
        case "chunked":
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            return start + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + b"0\r\n\r\n"
        case "interim":
            return b"HTTP/1.1 103 Early Hints\r\n" + fields + length + b"\r\n" + start + length + b"\r\n" + body
        case "no content":
            return b"HTTP/1.1 204 No Content\r\n" + fields + b"\r\n"
    return start + b"\r\n" + body


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["length", "length", *FRAMINGS]),
            st.integers(0, 2),
            st.binary(max_size=60),
            st.lists(st.integers(0, 200), max_size=3),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_each_request_gets_its_own_answer_wherever_it_is_cut(answers):
    async def talk(peer: Conversation):
        while True:
            number = int((await peer.head()).split(b" ", 2)[1].strip(b"/"))
            framing, tag, body, cuts = answers[number]
            answer = answer_of(framing, tag, body)
            edges = [0, *sorted(cut % len(answer) for cut in cuts), len(answer)]
            for start, end in itertools.pairwise(edges):
                await peer.send(answer[start:end])
                await asyncio.sleep(0.001)
            if framing in ("end", "close"):
                return

    async def main():
        async with raw_upstream(talk) as raw:
            upstream = Upstream("api", config.Upstream(url=raw.url))
            for number, (framing, tag, body, _) in enumerate(answers):
                # Twice: what was remembered the first time must fit the second time.
                for _ in range(2):
                    request = bare_request(target=f"/{number}", headers=((b"Host", b"a"),))
                    request.asked = upstream.begin(request)
                    response = await request.asked if request.asked is not None else None
                    if response is None:
                        response = await upstream(request)
                    assert response.status == (204 if framing == "no content" else 200)
                    assert response.get("X-Tag") == str(tag)
                    assert response.get("X-Length") == str(len(body))
                    assert await whole(response) == (b"" if framing == "no content" else body)
            await upstream.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@contextlib.asynccontextmanager
async def two_packets(first: bytes, second: bytes) -> AsyncIterator[tuple[Upstream, Response]]:
    """The response to a request whose answer comes in two packets."""

    async def talk(peer: Conversation):
        while True:
            await peer.head()
            await peer.send(first)
            await asyncio.sleep(0.003)
            await peer.send(second)

    async with raw_upstream(talk) as raw:
        upstream = Upstream("api", config.Upstream(url=raw.url))
        yield upstream, await upstream(bare_request(headers=((b"Host", b"a"),)))
        await upstream.stop()


@pytest.mark.parametrize(("closing", "kept"), [(b"", 1), (b"Connection: close\r\n", 0)])
async def test_a_small_body_behind_its_head_is_waited_for(closing, kept, monkeypatch):
    monkeypatch.setattr(connection, "PROMPT_SECONDS", 5)
    head = b"HTTP/1.1 200 OK\r\n" + closing + b"Content-Length: 6\r\n\r\n"
    async with two_packets(head + b"fo", b"obar") as (upstream, response):
        assert response.body == b"foobar"
        await eventually(lambda: upstream.connections == kept)


async def test_a_slow_body_is_streamed_after_a_moment(front: Front):
    go_on = asyncio.Event()

    async def talk(peer: Conversation):
        while True:
            await peer.head()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsl")
            await go_on.wait()
            await peer.send(b"ow")

    gateway, raw = await front(talk)
    for _ in range(2):
        async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(5):
            writer.write(GET)
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(2) == b"sl"
            go_on.set()
            assert await reader.read(-1) == b"ow"
        go_on.clear()
    assert raw.connections == 1


async def test_a_held_body_that_breaks_off_is_no_answer(front: Front):
    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nfoo")

    gateway, _ = await front(talk)
    head, _ = await exchange(gateway.port, GET)
    assert head.startswith(b"HTTP/1.1 502")


# -- more than the answer (RFC 9112, section 6.3) --------------------------------------------------


FOLLOWED = {
    "length": answer_of("length", 1, b"body"),
    "chunked": answer_of("chunked", 1, b"body"),
    "chunked, empty": answer_of("chunked", 1, b""),
    "close": answer_of("close", 1, b"body"),
    "interim": answer_of("interim", 1, b"body"),
    "no content": answer_of("no content", 1, b""),
    "not modified": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n",
    "HEAD": b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n",
}


@pytest.mark.parametrize("framing", FOLLOWED)
@pytest.mark.parametrize("kept", [False, True], ids=["new connection", "kept connection"])
async def test_an_answer_with_more_behind_it_is_whole_wherever_it_is_cut(framing, kept, caplog, monkeypatch):
    monkeypatch.setattr(forward, "LOG_PAUSE_SECONDS", 0.0)
    caplog.set_level(logging.WARNING, "gateway.upstream")
    answer = FOLLOWED[framing]
    end = answer.rindex(b"\r\n\r\n") + 4
    cuts = sorted({cut for cut in (0, 9, end - 3, end - 1, end, len(answer) - 1) if cut < len(answer)})
    cases = list(itertools.product(cuts, SURPLUS.values()))

    async def talk(peer: Conversation):
        cut, surplus = cases[peer.number - 1]
        if kept:
            await peer.head()
            await peer.send(OK)
        await peer.head()
        if cut:
            await peer.send(answer[:cut])
            await asyncio.sleep(0.002)
        await peer.send(answer[cut:] + surplus)
        await peer.reader.read(-1)

    async with raw_upstream(talk) as raw:
        upstream = Upstream("api", config.Upstream(url=raw.url))
        for number, (cut, surplus) in enumerate(cases, 1):
            if kept:
                assert (await upstream(bare_request(headers=((b"Host", b"a"),)))).body == b"ok"
            request = bare_request("HEAD" if framing == "HEAD" else "GET", headers=((b"Host", b"a"),))
            request.asked = upstream.begin(request)
            response = await request.asked if request.asked is not None else None
            if response is None:
                response = await upstream(request)
            about = f"{framing}, cut at {cut}, then {surplus[:20]!r}"
            assert response.status == {"no content": 204, "not modified": 304}.get(framing, 200), about
            assert response.get("X-Evil") is None, about
            assert await whole(response) == (b"body" if answer.endswith(b"body") or b"4\r\nbody" in answer else b"")
            await eventually(lambda: upstream.connections == 0)
            assert len(caplog.records) == number, about
        assert (raw.connections, upstream.failures) == (len(cases), 0)
        await upstream.stop()


@pytest.mark.parametrize("surplus", SURPLUS.values(), ids=SURPLUS)
async def test_more_than_the_answer_is_told_to_the_log_and_to_nobody_else(front: Front, surplus, caplog):
    caplog.set_level(logging.WARNING, "gateway.upstream")

    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(OK + surplus)
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsame wire")

    gateway, raw = await front(talk)
    for _ in range(3):
        head, body = await exchange(gateway.port, GET)
        assert b"Content-Length: 2" in head
        assert body == b"ok"
    assert raw.connections == 3
    lines = [record.getMessage() for record in caplog.records if record.name == "gateway.upstream"]
    discarded = "upstream default: more bytes than its answer has; they were discarded and the connection closed"
    assert lines == [discarded], "not a line per request, and not a byte of it"


@pytest.mark.parametrize("surplus", SURPLUS.values(), ids=SURPLUS)
@pytest.mark.parametrize("chunked", [True, False])
async def test_a_long_answer_with_more_behind_it_is_whole_for_a_slow_client(front: Front, surplus, chunked):
    body = bytes(1_000_003)
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body

    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        await peer.send(sent + surplus)

    gateway, _ = await front(talk)
    async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(5):
        writer.write(GET)
        await reader.readuntil(b"\r\n\r\n")
        received = b""
        while piece := await reader.read(20_000):
            received += piece
            await asyncio.sleep(0)
    if chunked:
        assert received.endswith(b"0\r\n\r\n")
        assert len(received) - len(body) < 2000
        assert received.count(b"\0") == len(body)
    else:
        assert received == body
    await eventually(lambda: gateway.worker.upstreams["default"].connections == 0)


async def test_what_is_no_head_behind_an_answer_does_not_harm_what_was_not_read_yet():
    body = bytes(100_000)
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body)
    go_on = asyncio.Event()

    async def talk(peer: Conversation):
        await peer.head()
        await peer.send(answer)
        await go_on.wait()
        await peer.send(body + b"\r\n0\r\n\r\n" + SURPLUS["a head for nobody"])
        await peer.reader.read(-1)

    async with raw_upstream(talk) as raw:
        upstream = Upstream("api", config.Upstream(url=raw.url))
        response = await upstream(bare_request(headers=((b"Host", b"a"),)))
        go_on.set()
        await eventually(lambda: upstream.connections == 0)
        assert await whole(response) == body
        await upstream.stop()


async def test_an_unusable_answer_is_not_saved_by_more_behind_it(front: Front):
    gateway, _ = await front(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!" + OK))
    head, _ = await exchange(gateway.port, GET)
    assert head.startswith(b"HTTP/1.1 502")


async def test_bytes_behind_an_answer_end_its_connection_and_reach_nobody(front: Front):
    sent = asyncio.Event()

    async def talk(peer: Conversation):
        while True:
            await peer.head()
            await peer.send(OK)
            if peer.number < 3:
                await peer.send(EVIL)
                sent.set()

    gateway, raw = await front(talk)
    upstream = gateway.worker.upstreams["default"]
    for _ in range(5):
        sent.clear()
        assert (await exchange(gateway.port, GET))[1] == b"ok"
        if raw.connections < 3:
            await sent.wait()
            await eventually(lambda: upstream.connections == 0)
    assert raw.connections == 3


async def test_an_upload_that_is_answered_early_in_one_piece_closes_its_connection(front: Front):
    gateway, raw = await front(answering(OK))
    async with raw_client(gateway.port) as (reader, writer), asyncio.timeout(5):
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nonly a part")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        await raw.lost.wait()


async def test_an_idle_connection_may_be_silent_for_longer_than_read_timeout(front: Front):
    gateway, raw = await front(answering(OK), upstream={"read_timeout": 0.03})
    for _ in range(3):
        assert (await exchange(gateway.port, GET))[1] == b"ok"
        await asyncio.sleep(0.05)
    assert raw.connections == 1
