"""Remembered heads: a request whose bytes came before means the same again, and nothing else ever does."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.heads import MAX_HEAD_BYTES, MAX_HEADS, Heads
from gateway.remembered import SEEN
from gateway.request import Head
from tests.conftest import StartGateway
from tests.harness import Gateway, UpstreamServer, eventually

HOST = b"Host: api.example\r\n"
KNOWN = b"GET /known HTTP/1.1\r\n" + HOST + b"\r\n"
HEAD_END = b"\r\n\r\n"


# -- the map ---------------------------------------------------------------------------------------


def test_a_head_is_kept_when_it_comes_a_second_time() -> None:
    heads, head = Heads(), Head()
    heads.put(KNOWN, head)
    assert heads.get(KNOWN) is None
    heads.put(KNOWN, head)
    assert heads.get(KNOWN) is head
    assert heads.get(KNOWN + b" ") is None


def test_heads_that_never_come_again_push_nothing_out() -> None:
    heads, head = Heads(), Head()
    for _ in range(2):
        heads.put(KNOWN, head)
    for number in range(4 * MAX_HEADS):
        heads.put(b"%d" % number, head)
    assert len(heads) == 1
    assert heads.get(KNOWN) is head


def test_their_number_and_their_size_are_bounded() -> None:
    heads, head = Heads(), Head()
    for number in range(2 * MAX_HEADS):
        for _ in range(2):
            heads.put(b"%d" % number, head)
    assert len(heads) == MAX_HEADS
    for size, kept in ((MAX_HEAD_BYTES, True), (MAX_HEAD_BYTES + 1, False)):
        heads = Heads()
        for _ in range(2):
            heads.put(b"x" * size, head)
        assert (heads.get(b"x" * size) is not None) == kept


def test_most_stay_when_more_come_in_turn_than_there_is_room_for() -> None:
    heads, head = Heads(), Head()
    raws = [b"%d" % number for number in range(MAX_HEADS + MAX_HEADS // 2)]
    for _ in range(3):
        for raw in raws:
            if heads.get(raw) is None:
                heads.put(raw, head)
                heads.put(raw, head)
    assert sum(heads.get(raw) is not None for raw in raws) == MAX_HEADS
    hits = sum(heads.get(raw) is not None or heads.put(raw, head) is not None for raw in raws)
    assert hits > len(raws) / 2


@given(st.lists(st.integers(0, 3 * SEEN), max_size=200))
def test_two_heads_are_never_mixed_up(numbers: list[int]) -> None:
    """Also where they share a place in the table of what came once."""
    heads = Heads()
    own = {number: Head() for number in numbers}
    for number in numbers:
        raw = b"%d" % number
        assert heads.get(raw) in (None, own[number])
        heads.put(raw, own[number])


# -- what the upstream sees ------------------------------------------------------------------------


class Client:
    """A raw connection that knows which answers it must get."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, node: Gateway) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(reader, writer)

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer that is not `100 Continue`."""
        async with asyncio.timeout(5):
            while (head := await self.reader.readuntil(HEAD_END)).startswith(b"HTTP/1.1 100 "):
                pass
            length = re.search(rb"Content-Length: (\d+)", head)
            assert length is not None, head
            return int(head[9:12]), await self.reader.readexactly(int(length[1]))

    async def ask(self, data: bytes) -> tuple[int, bytes]:
        self.send(data)
        return await self.answer()

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


async def remembered(node: Gateway, *raws: bytes) -> Client:
    """A connection of a node that remembers these heads."""
    client = await Client.to(node)
    for raw in raws:
        await eventually(partial(known, node, client, raw))
    return client


async def known(node: Gateway, client: Client, raw: bytes) -> bool:
    assert (await client.ask(raw))[0] == 200
    return node.worker.server.heads.get(raw) is not None


async def echo(request: web.Request) -> web.Response:
    body = await request.read()
    return web.json_response([request.method, request.raw_path, request.headers.get("X-Mark"), body.decode("latin-1")])


@pytest.fixture
def echoing(upstream: UpstreamServer) -> UpstreamServer:
    upstream.answers = Everything()
    return upstream


@pytest.fixture
async def node(gateway: StartGateway, echoing: UpstreamServer) -> Gateway:
    """A node that remembers `KNOWN`; the upstream has seen nothing yet."""
    node = await gateway(short_way=True)
    await (await remembered(node, KNOWN)).close()
    echoing.requests.clear()
    return node


class Everything(dict[str, Any]):
    """Each path is answered by telling what was asked."""

    def get(self, key: str, default: Any = None) -> Any:
        return echo


@dataclass(frozen=True)
class Message:
    """One request: its bytes, and how a strict parser reads them."""

    raw: bytes
    method: str
    target: str
    mark: str | None
    body: bytes

    @property
    def seen(self) -> list[Any]:
        return [self.method, self.target, self.mark, self.body.decode("latin-1")]


def message(method: str, path: str, mark: str | None, body: bytes | None, framing: str, lead: bytes) -> Message:
    # The mark stands before Host, so that with one of them this head ends in `KNOWN`.
    head = lead + f"{method} {path} HTTP/1.1\r\n".encode()
    head += (b"" if mark is None else b"X-Mark: " + mark.encode() + b"\r\n") + HOST
    content = body or b""
    if body is None:
        raw = head + b"\r\n"
    elif framing == "chunked":
        middle = len(content) // 2
        chunks = [chunk for chunk in (content[:middle], content[middle:]) if chunk]
        raw = head + b"Transfer-Encoding: chunked\r\n\r\n"
        raw += b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    else:
        expect = b"Expect: 100-continue\r\n" if framing == "expect" else b""
        raw = head + expect + b"Content-Length: %d\r\n\r\n" % len(content) + content
    return Message(raw, method, path, mark, content)


# Bodies that look like heads, and ends of heads: what a gateway could take for the next request.
TRAPS = [KNOWN, b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n", HEAD_END, b"0\r\n\r\n" + KNOWN, b"x" + HEAD_END, b"abc"]
MESSAGES = st.builds(
    message,
    method=st.sampled_from(["GET", "POST"]),
    path=st.sampled_from(["/known", "/a", "/b?c=%2F"]),
    mark=st.sampled_from([None, None, "1", "GET /known HTTP/1.1"]),
    body=st.one_of(st.none(), st.none(), st.just(b""), st.sampled_from(TRAPS), st.binary(max_size=20)),
    framing=st.sampled_from(["length", "chunked", "expect"]),
    lead=st.sampled_from([b"", b"", b"", b"\r\n", b"\r\n\r\n"]),
)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[Message], list[tuple[bytes, bool]]]:
    """What one client sends: the messages, and the pieces, each with whether it waits for answers afterwards."""
    messages = draw(st.lists(MESSAGES, min_size=1, max_size=8))
    data = b"".join(message.raw for message in messages)
    # Where a piece may end: anywhere, but above all where something looks like the end or the beginning of a head.
    likely = {found.end() for found in re.finditer(rb"\r\n\r\n|\r\n(?=GET|POST)", data)}
    likely |= {found.start() for found in re.finditer(rb"GET /|POST /", data)}
    cuts = draw(st.sets(st.sampled_from(sorted(likely | {0})))) | draw(st.sets(st.integers(0, len(data)), max_size=3))
    edges = sorted({0, len(data), *cuts})
    pieces = [data[begin:end] for begin, end in pairwise(edges)]
    return messages, [(piece, draw(st.booleans())) for piece in pieces]


async def converse(node: Gateway, messages: list[Message], pieces: list[tuple[bytes, bool]]) -> list[Any]:
    client = await Client.to(node)
    answers: list[Any] = []
    ends = list(accumulate(len(message.raw) for message in messages))
    sent = 0
    for piece, waits in pieces:
        client.send(piece)
        sent += len(piece)
        for _ in range(4):
            await asyncio.sleep(0)  # so that most pieces arrive on their own
        while waits and len(answers) < len(messages) and ends[len(answers)] <= sent:
            answers.append(await client.answer())
    while len(answers) < len(messages):
        answers.append(await client.answer())
    await client.close()
    return [json.loads(body) if status == 200 else status for status, body in answers]


@settings(max_examples=300)
@given(spoken=st.lists(conversations(), min_size=1, max_size=3))
async def test_requests_are_those_that_a_strict_parser_sees(
    node: Gateway, echoing: UpstreamServer, spoken: list[tuple[list[Message], list[tuple[bytes, bool]]]]
) -> None:
    echoing.requests.clear()
    answers = await asyncio.gather(*(converse(node, *conversation) for conversation in spoken))
    expected = [[message.seen for message in messages] for messages, _ in spoken]
    # Each client's answers tell what the upstream has got from it, and in which order; and it got nothing else.
    assert answers == expected
    assert len(echoing.requests) == sum(map(len, expected))
    assert node.worker.server.in_flight == 0


def seen_by(upstream: UpstreamServer) -> list[tuple[str, str, bytes]]:
    return [(request.method, request.target, request.body) for request in upstream.requests]


async def in_pieces(node: Gateway, *pieces: bytes) -> tuple[Client, Client]:
    """Send pieces, each of which the gateway reads on its own."""
    client, other = await Client.to(node), await Client.to(node)
    for piece in pieces:
        client.send(piece)
        # What comes on another connection afterwards is read later.
        assert (await other.ask(b"GET /other HTTP/1.1\r\n" + HOST + b"\r\n"))[0] == 200
    return client, other


POST = b"POST /post HTTP/1.1\r\n" + HOST
HALF = b"GET /half HTTP/1.1\r\nX-Mark: "
HIDDEN: dict[str, tuple[list[bytes], list[tuple[str, str, bytes]]]] = {
    "a body": ([POST + b"Content-Length: %d\r\n\r\n" % len(KNOWN), KNOWN], [("POST", "/post", KNOWN)]),
    "a body's end": (
        [POST + b"Content-Length: %d\r\n\r\nabc" % (len(KNOWN) + 3), KNOWN],
        [("POST", "/post", b"abc" + KNOWN)],
    ),
    "a body and the next request": (
        [POST + b"Content-Length: %d\r\n\r\n" % len(KNOWN), KNOWN, KNOWN],
        [("POST", "/post", KNOWN), ("GET", "/known", b"")],
    ),
    "a body that was announced": (
        [POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(KNOWN), KNOWN],
        [("POST", "/post", KNOWN)],
    ),
    "a chunk": (
        [POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(KNOWN), KNOWN, b"\r\n0\r\n\r\n"],
        [("POST", "/post", KNOWN)],
    ),
    "a chunk, in one piece with its size": (
        [POST + b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n" % len(KNOWN) + KNOWN, b"\r\n0\r\n\r\n"],
        [("POST", "/post", KNOWN)],
    ),
    "a field's value": ([HALF, KNOWN], [("GET", "/half", b"")]),
    "a field's value, and the next request": ([HALF, KNOWN, KNOWN], [("GET", "/half", b""), ("GET", "/known", b"")]),
    "what follows an empty line": ([b"\r\n", KNOWN, b"\r\n\r\n", KNOWN], [("GET", "/known", b"")] * 2),
}


@pytest.mark.parametrize("name", HIDDEN)
async def test_what_is_no_request_is_none_although_it_came_as_one_before(
    node: Gateway, echoing: UpstreamServer, name: str
) -> None:
    pieces, expected = HIDDEN[name]
    for _ in range(3):
        echoing.requests.clear()
        client, _ = await in_pieces(node, *pieces)
        for _ in expected:
            assert (await client.answer())[0] == 200
        assert [request for request in seen_by(echoing) if request[1] != "/other"] == expected
        # The connection goes on as if nothing had been.
        assert json.loads((await client.ask(KNOWN))[1])[:2] == ["GET", "/known"]
        await client.close()


@pytest.mark.parametrize("after", [b"GET /half HTTP/1.1\r\n", b"GET /half HTTP/1.1\r\nA"], ids=["a line", "a name"])
async def test_a_known_head_in_the_middle_of_another_is_refused(
    node: Gateway, echoing: UpstreamServer, after: bytes
) -> None:
    client, _ = await in_pieces(node, after, KNOWN)
    assert (await client.answer())[0] == 400
    assert await client.reader.read() == b""
    assert not echoing.count("/known")
    assert not echoing.count("/half")


async def test_the_end_of_a_head_is_never_taken_for_a_head(node: Gateway, echoing: UpstreamServer) -> None:
    begin, end = b"GET /whole HTTP/1.1\r\n", b"GET: /end\r\n" + HOST + b"\r\n"
    for _ in range(4):
        client, _ = await in_pieces(node, begin, end)
        assert (await client.answer())[0] == 200
        await client.close()
    client, _ = await in_pieces(node, end)
    assert (await client.answer())[0] == 400
    assert {request.target for request in echoing.requests} == {"/whole", "/other"}


async def test_an_error_is_told_of_the_head_that_has_it(node: Gateway) -> None:
    """Not of an earlier one on the same connection, that came in pieces."""
    client, _ = await in_pieces(node, b"GET / HT", b"TP/1.1\r\n" + HOST + b"\r\n")
    assert (await client.answer())[0] == 200
    client.send(b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    assert (await client.answer())[0] == 414


async def test_nothing_of_a_broken_message_makes_a_known_head_count(node: Gateway, echoing: UpstreamServer) -> None:
    """After an error the parser is nowhere: the connection ends."""
    for broken in (b"G@T / HTTP/1.1\r\n" + HOST + b"\r\n", POST + b"Content-Length: x\r\n\r\n"):
        client = await Client.to(node)
        assert (await client.ask(KNOWN))[0] == 200
        client.send(broken)
        client.send(KNOWN)
        assert (await client.answer())[0] == 400
        assert await client.reader.read() == b""
    assert echoing.count("/known") == 2


async def test_a_refused_upgrade_leaves_a_connection_that_understands(node: Gateway, echoing: UpstreamServer) -> None:
    upgrade = b"GET /up HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    client = await Client.to(node)
    for _ in range(3):
        client.send(upgrade)
        client.send(KNOWN)
        assert [json.loads((await client.answer())[1])[1] for _ in range(2)] == ["/up", "/known"]
        assert json.loads((await client.ask(KNOWN))[1])[1] == "/known"
    assert [request.target for request in echoing.requests] == ["/up", "/known", "/known"] * 3


async def test_a_tunnel_carries_a_known_head_as_any_bytes(gateway: StartGateway, echoing: UpstreamServer) -> None:
    async def switch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(HEAD_END)
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n")
        writer.write(b"<" + await reader.readexactly(2 * len(KNOWN)) + b">")
        writer.close()

    switching = await asyncio.start_server(switch, "127.0.0.1", 0)
    port = switching.sockets[0].getsockname()[1]
    node = await gateway(
        {
            "upstreams": {"default": {"url": echoing.url}, "switching": {"url": f"http://127.0.0.1:{port}"}},
            "routes": [{"match": {"path": "/up"}, "upstream": "switching"}, {"match": {"path": "/known"}}],
        },
        short_way=True,
    )
    client = await remembered(node, KNOWN)
    client.send(b"GET /up HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: other\r\n\r\n")
    async with asyncio.timeout(5):
        assert (await client.reader.readuntil(HEAD_END)).startswith(b"HTTP/1.1 101 ")
        seen = len(echoing.requests)
        client.send(KNOWN)
        client.send(KNOWN)
        assert await client.reader.read() == b"<" + 2 * KNOWN + b">"
    assert len(echoing.requests) == seen
    switching.close()
    await switching.wait_closed()


async def test_the_same_bytes_from_another_client_are_another_clients(
    gateway: StartGateway, upstream: UpstreamServer
) -> None:
    """Who is trusted to speak for others is decided by the connection, never by what is remembered."""
    node = await gateway(
        {
            "server": {"trusted_proxies": ["127.0.0.1"]},
            "plugins": {"rate_limit": {"limits": ["100/hour"]}},
        },
        short_way=True,
    )
    head = b"GET / HTTP/1.1\r\n" + HOST + b"X-Forwarded-For: 198.51.100.7\r\nX-Forwarded-Proto: https\r\n\r\n"
    for _ in range(4):
        remaining = []
        for source in ("127.0.0.1", "127.0.0.2"):
            reader, writer = await asyncio.open_connection("127.0.0.1", node.port, local_addr=(source, 0))
            for _ in range(2):
                writer.write(head)
                answer = await reader.readuntil(HEAD_END)
                length = re.search(rb"Content-Length: (\d+)", answer)
                found = re.search(rb"X-RateLimit-Remaining: (\d+)", answer)
                assert length is not None
                assert found is not None
                await reader.readexactly(int(length[1]))
                remaining.append(int(found[1]))
            writer.close()
        # Each is counted on its own, so both stand at the same.
        assert remaining[:2] == remaining[2:]
        believed, not_believed = upstream.requests[-3].headers, upstream.requests[-1].headers
        assert believed["X-Forwarded-Proto"] == "https"
        assert not_believed["X-Forwarded-Proto"] == "http"
        assert "198.51.100.7" not in not_believed["X-Forwarded-For"]
    assert node.worker.server.heads.get(head) is not None
