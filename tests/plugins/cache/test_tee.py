"""A body on two ways at once: to its client, and into memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from gateway.plugin import Response, Stream
from plugins.cache.tee import PIECE, SMALL_BODY, Tee, whole
from tests.conftest import StartGateway
from tests.harness import UpstreamServer, eventually
from tests.plugins.cache.conftest import Client


class Broken(Exception):
    """What ends a body early."""


class Source:
    """An upstream's body that says a piece each time it is told to."""

    def __init__(self, *pieces: bytes, end: bool = True) -> None:
        self._pieces: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        for piece in pieces:
            self.say(piece)
        if end:
            self.say(None)
        self.read = 0
        self.closed = False

    def say(self, piece: bytes | Exception | None) -> None:
        """None is the end; an exception breaks the body off."""
        self._pieces.put_nowait(piece)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        assert not self.closed, "a closed body was read"
        piece = await self._pieces.get()
        if isinstance(piece, Exception):
            raise piece
        if piece is None:
            raise StopAsyncIteration
        self.read += 1
        return piece

    async def aclose(self) -> None:
        self.closed = True


async def taken(stream: Stream) -> bytes:
    """What a client gets that reads all and then closes, as the server does."""
    try:
        return b"".join([piece async for piece in stream])
    finally:
        await stream.aclose()


def tee_of(source: Source, max_body: int = 1000, patience: float = 5) -> Tee:
    return Tee(source, max_body=max_body, patience=patience)


async def test_both_get_all_of_it() -> None:
    source = Source(b"one ", b"", b"two ", b"three")
    tee = tee_of(source)
    assert await asyncio.gather(tee.whole(), taken(tee)) == [b"one two three"] * 2
    assert source.closed


async def test_the_client_gets_pieces_before_the_body_is_whole() -> None:
    source = Source(b"one", end=False)
    tee = tee_of(source)
    storing = asyncio.ensure_future(tee.whole())
    assert await anext(tee) == b"one"
    source.say(b"two")
    assert await anext(tee) == b"two"
    assert not storing.done()
    source.say(None)
    assert await storing == b"onetwo"
    with pytest.raises(StopAsyncIteration):
        await anext(tee)


async def test_a_slow_client_does_not_slow_the_storing() -> None:
    pieces = [b"x" * PIECE] * 5
    tee = tee_of(Source(*pieces), max_body=1 << 20)
    assert await tee.whole() == b"".join(pieces)
    assert await taken(tee) == b"".join(pieces)


async def test_a_client_that_left_does_not_stop_the_storing() -> None:
    source = Source(b"one", end=False)
    tee = tee_of(source)
    storing = asyncio.ensure_future(tee.whole())
    assert await anext(tee) == b"one"
    await tee.aclose()
    source.say(b"two")
    source.say(None)
    assert await storing == b"onetwo"
    assert source.closed


async def test_past_the_bound_the_rest_is_read_only_as_the_client_takes_it() -> None:
    source = Source(*[b"x" * 10] * 100)
    tee = tee_of(source, max_body=35)
    assert await tee.whole() is None
    assert source.read == 4, "the bound and one piece"
    assert await anext(tee) == b"x" * 40
    assert source.read == 4
    assert await anext(tee) == b"x" * 10
    assert source.read == 5
    assert await taken(tee) == b"x" * 950


@pytest.mark.parametrize("leaves", ["before", "after"])
async def test_past_the_bound_a_body_without_a_client_is_closed(leaves: str) -> None:
    source = Source(*[b"x" * 10] * 100)
    tee = tee_of(source, max_body=35)
    if leaves == "before":
        await tee.aclose()
    assert await tee.whole() is None
    if leaves == "after":
        assert not source.closed
        await tee.aclose()
    assert source.closed
    assert source.read == 4


async def test_a_slow_body_is_passed_on_and_not_stored() -> None:
    source = Source(b"one", end=False)
    tee = tee_of(source, patience=0.02)
    assert await tee.whole() is None
    assert await anext(tee) == b"one"
    source.say(b"two")
    source.say(b"three")
    source.say(None)
    assert await taken(tee) == b"twothree"
    assert source.closed


async def test_a_slow_body_whose_client_has_left_is_closed() -> None:
    source = Source(b"one", end=False)
    tee = tee_of(source, patience=0.02)
    await tee.aclose()
    assert await tee.whole() is None
    assert source.closed


async def test_a_body_that_breaks_off_never_looks_complete() -> None:
    source = Source(b"one", Broken())
    tee = tee_of(source)
    with pytest.raises(Broken):
        await tee.whole()
    assert await anext(tee) == b"one"
    with pytest.raises(Broken):
        await anext(tee)
    assert source.closed


async def test_a_body_that_breaks_off_past_the_bound_does_not_either() -> None:
    tee = tee_of(Source(b"x" * 50, b"y", Broken()), max_body=10)
    assert await tee.whole() is None
    with pytest.raises(Broken):
        await taken(tee)


async def test_who_gives_up_the_storing_leaves_the_client_its_body() -> None:
    source = Source(b"one", end=False)
    tee = tee_of(source)
    storing = asyncio.ensure_future(tee.whole())
    assert await anext(tee) == b"one"
    storing.cancel()
    await asyncio.wait([storing])
    source.say(b"two")
    source.say(None)
    assert await taken(tee) == b"two"
    assert source.closed


async def test_who_gives_up_the_storing_without_a_client_closes_the_body() -> None:
    source = Source(end=False)
    tee = tee_of(source)
    await tee.aclose()
    storing = asyncio.ensure_future(tee.whole())
    await asyncio.sleep(0)
    storing.cancel()
    await asyncio.wait([storing])
    assert source.closed


async def test_a_client_that_is_cancelled_while_it_waits_is_one_that_left() -> None:
    source = Source(end=False)
    tee = tee_of(source)
    storing = asyncio.ensure_future(tee.whole())
    client = asyncio.ensure_future(taken(tee))
    await asyncio.sleep(0)
    client.cancel()
    await asyncio.wait([client])
    source.say(b"one")
    source.say(None)
    assert await storing == b"one"


@given(
    pieces=st.lists(st.binary(max_size=20), max_size=20),
    max_body=st.integers(0, 100),
    breaks=st.booleans(),
    steps=st.lists(st.sampled_from(["upstream", "client"]), max_size=60),
    leaves=st.booleans(),
)
def test_the_client_gets_what_the_upstream_said_and_only_what_is_whole_is_stored(
    pieces: list[bytes], max_body: int, breaks: bool, steps: list[str], leaves: bool
) -> None:
    async def run() -> None:
        source = Source(end=False)
        tee = tee_of(source, max_body=max_body)
        storing = asyncio.ensure_future(tee.whole())
        waiting = [*pieces, Broken() if breaks else None]
        got: list[bytes] = []
        ended = False

        async def client() -> None:
            nonlocal ended
            async for piece in tee:
                got.append(piece)
                await turn.wait()
            ended = True

        turn = asyncio.Event()
        reading = asyncio.ensure_future(client())
        for step in steps:
            if step == "upstream" and waiting:
                source.say(waiting.pop(0))
            elif step == "client":
                turn.set()
                await asyncio.sleep(0)
                turn.clear()
            await asyncio.sleep(0)
        if leaves:
            reading.cancel()
            await asyncio.wait([reading])
            await tee.aclose()
        turn.set()
        for piece in waiting:
            source.say(piece)
        await asyncio.wait([storing, reading])
        said = b"".join(pieces)
        assert said.startswith(b"".join(got))
        if not leaves:
            assert b"".join(got) == said
            assert ended is not breaks
        if storing.exception() is not None:
            assert breaks
        else:
            assert storing.result() == (said if len(said) <= max_body else None)
        await tee.aclose()
        assert source.closed

    asyncio.run(run())


# -- an answer's body ------------------------------------------------------------------------------


def answer(body: bytes | Source, length: int | None = None) -> Response:
    return Response(200, {}, body, length=length)


async def test_bytes_are_whole_already() -> None:
    assert await whole(answer(b"abc"), max_body=3, patience=1) == b"abc"
    assert await whole(answer(b"abcd"), max_body=3, patience=1) is None


async def test_what_says_that_it_is_too_long_is_not_touched() -> None:
    source = Source(b"x")
    response = answer(source, 1001)
    assert await whole(response, max_body=1000, patience=1) is None
    assert response.body is source
    assert source.read == 0


@pytest.mark.parametrize(
    ("length", "early"), [(3, False), (SMALL_BODY, False), (SMALL_BODY + 1, True), (None, True)], ids=str
)
async def test_only_what_may_be_large_is_handed_out_before_it_is_whole(length: int | None, early: bool) -> None:
    source = Source(b"one", end=False)
    response = answer(source, length)
    handed: list[Response] = []
    storing = asyncio.ensure_future(whole(response, max_body=1 << 20, patience=5, hand=handed.append))
    await eventually(lambda: source.read == 1)
    assert bool(handed) is early
    source.say(None)
    assert await storing == b"one"
    assert response.body == b"one"
    for shown in handed:
        assert shown.length == length
        assert isinstance(shown.body, Tee)
        assert await taken(shown.body) == b"one"


async def test_what_becomes_of_the_clients_answer_does_not_show_in_what_is_stored() -> None:
    response = Response(203, {"X-Kept": "1"}, Source(b"one", b"two"))
    handed: list[Response] = []
    storing = asyncio.ensure_future(whole(response, max_body=1000, patience=5, hand=handed.append))
    await eventually(lambda: handed)
    (shown,) = handed
    assert (shown.status, shown.get("X-Kept")) == (203, "1")
    shown.set("X-Kept", "2")
    shown.set("Set-Cookie", "session=of-this-client")
    assert await storing == b"onetwo"
    assert response.head() == b"X-Kept: 1\r\n"


async def test_without_a_client_to_hand_it_to_it_becomes_bytes() -> None:
    response = answer(Source(b"one", b"two"))
    assert await whole(response, max_body=1000, patience=5) == b"onetwo"
    assert response.body == b"onetwo"


async def test_what_was_too_long_after_all_is_still_the_whole_answer() -> None:
    response = answer(Source(b"one", b"two", b"three"))
    assert await whole(response, max_body=5, patience=5) is None
    assert isinstance(response.body, Tee)
    assert await taken(response.body) == b"onetwothree"


async def test_what_breaks_off_before_it_was_handed_out_is_closed() -> None:
    source = Source(b"one", Broken())
    with pytest.raises(Broken):
        await whole(answer(source), max_body=1000, patience=5)
    assert source.closed


# -- through the gateway ---------------------------------------------------------------------------

LARGE = b"x" * (SMALL_BODY + 1)


class Large:
    """An upstream's large answer: its first part at once, the rest when the test says so."""

    def __init__(self, upstream: UpstreamServer, *, breaks: bool = False) -> None:
        self.release = asyncio.Event()
        self._breaks = breaks
        upstream.answer("/a", self)

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Cache-Control": "max-age=60"})
        response.content_length = 2 * len(LARGE)
        await response.prepare(request)
        await response.write(LARGE)
        await self.release.wait()
        if self._breaks:
            assert request.transport is not None
            request.transport.close()
        else:
            await response.write(LARGE)
        return response


async def test_the_first_client_reads_a_large_answer_while_it_is_being_stored(
    gateway: StartGateway, upstream: UpstreamServer, http: aiohttp.ClientSession, ask: Client
) -> None:
    large = Large(upstream)
    nodes = [await gateway({"plugins": {"cache": {}}}), await gateway({"plugins": {"cache": {}}})]
    async with http.get(nodes[0].url + "/a", headers={"Host": "api.test"}) as first:
        assert await asyncio.wait_for(first.content.readexactly(len(LARGE)), 2) == LARGE
        waiting = [asyncio.ensure_future(ask(node)) for node in nodes]
        await asyncio.sleep(0.05)
        assert upstream.count("/a") == 1
        large.release.set()
        got = await asyncio.gather(*waiting)
        assert await first.read() == LARGE
    assert {answer.body for answer in got} == {LARGE * 2}
    assert upstream.count("/a") == 1
    assert [(await ask(node)).cache for node in nodes] == ["HIT", "HIT"]


async def test_a_first_client_that_reads_nothing_or_leaves_keeps_nobody_waiting(
    gateway: StartGateway, upstream: UpstreamServer, http: aiohttp.ClientSession, ask: Client
) -> None:
    large = Large(upstream)
    node = await gateway({"plugins": {"cache": {}}})
    first = await http.get(node.url + "/a", headers={"Host": "api.test"})
    first.close()
    large.release.set()
    assert (await ask(node)).body == LARGE * 2
    assert (await ask(node)).cache == "HIT"
    assert upstream.count("/a") == 1


async def test_over_the_bound_the_first_gets_it_all_and_the_others_go_on(
    gateway: StartGateway, upstream: UpstreamServer, http: aiohttp.ClientSession
) -> None:
    release = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Cache-Control": "max-age=60"})
        await response.prepare(request)
        await response.write(LARGE)
        await response.write(LARGE)
        await release.wait()
        await response.write(b"end")
        return response

    upstream.answer("/a", endless)
    nodes = [await gateway({"plugins": {"cache": {"max_body": len(LARGE)}}}) for _ in range(2)]
    one, two = (http.get(node.url + "/a", headers={"Host": "api.test"}) for node in nodes)
    async with one as first, asyncio.timeout(3), two as other:
        assert await first.content.readexactly(2 * len(LARGE)) == LARGE * 2
        assert await other.content.readexactly(2 * len(LARGE)) == LARGE * 2
        assert upstream.count("/a") == 2
        release.set()
        assert await first.read() == await other.read() == b"end"


async def test_a_large_answer_that_breaks_off_is_cut_for_its_client_and_not_stored(
    gateway: StartGateway, upstream: UpstreamServer, http: aiohttp.ClientSession, ask: Client
) -> None:
    large = Large(upstream, breaks=True)
    node = await gateway({"plugins": {"cache": {}}})
    async with http.get(node.url + "/a", headers={"Host": "api.test"}) as first:
        waiting = asyncio.ensure_future(ask(node))
        assert await first.content.readexactly(len(LARGE)) == LARGE
        await eventually(lambda: node.worker.server.in_flight == 2)
        large.release.set()
        with pytest.raises(aiohttp.ClientPayloadError):
            await first.read()
    assert (await waiting).status == 502
    upstream.answer("/a", lambda _: web.Response(text="better"))
    assert (await ask(node)).body == b"better"
