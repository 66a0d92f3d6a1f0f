"""Whole heads, and what is remembered of them, as functions; on the wire: test_forward.py."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpResponseParser
from hypothesis import given
from hypothesis import strategies as st

from gateway.remembered import SEEN
from gateway.upstream import heads
from gateway.upstream.fields import END_TO_END, NOT_SENT
from gateway.upstream.heads import PlainHeads, RequestHeads
from tests.requests import bare_request
from tests.upstream.raw import lines_of
from tests.upstream.test_fields import FIELDS, VALUE

VIA = b"Via: 1.1 gateway\r\n"
LIMITS = {"max_line_size": 8190, "max_field_size": 8190, "max_headers": 100}


# -- out -------------------------------------------------------------------------------------------


def maker(**options):
    return RequestHeads(**({"prefix": "", "host": None, "default_host": b"Host: own\r\n", "via": "gateway"} | options))


def head_of(request, **options):
    return maker(**options).head(request)


def normal(line: bytes) -> bytes:
    return line.partition(b":")[0].lower().replace(b"_", b"-")


@given(FIELDS)
def test_end_to_end_fields_pass_byte_for_byte_in_order_and_no_other_does(fields):
    request = bare_request(headers=((b"Host", b"a.example"), *fields))
    named = {
        name.strip().lower() for key, value in fields if key.lower() == b"connection" for name in value.split(b",")
    }
    written = {b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"}
    sent = lines_of(head_of(request))[1:]
    expected = [
        name + b": " + value
        for name, value in request.raw_headers
        if (key := normal(name)) not in NOT_SENT
        and not key.startswith((b"proxy-", b"x-forwarded-"))
        and key != b"forwarded"
        and (key not in named or key in END_TO_END)
    ]
    assert [line for line in sent if normal(line) not in written] == [
        line for line in expected if normal(line) not in written
    ]
    for name in (b"forwarded", b"x-forwarded-for", b"x-forwarded-host"):
        assert sum(normal(line) == name for line in sent) == 1, "exactly ours"


@given(
    st.text("ab-_", min_size=1, max_size=8),
    st.lists(st.tuples(st.text("abAB-_", min_size=1, max_size=8), VALUE), max_size=8),
)
def test_a_field_the_gateway_sets_comes_from_nobody_else(name, fields):
    request = bare_request(headers=tuple((key.encode(), value) for key, value in fields))
    request.set_header(name, "ours")
    wanted = name.lower().replace("_", "-").encode()
    sent = [line for line in lines_of(head_of(request))[1:] if normal(line) == wanted]
    assert sent == [name.encode() + b": ours"]


def test_connection_cannot_name_away_what_is_meant_for_the_upstream_or_what_the_gateway_sends():
    request = bare_request(
        headers=(
            (b"Host", b"a.example"),
            (b"Connection", b"Host, Authorization, X-User-Id, X-Forwarded-For, Accept-Language, X-Mine"),
            (b"Connection", b"X-Other"),
            (b"Authorization", b"Bearer t"),
            (b"Accept-Language", b"de"),
            (b"X-User-Id", b"forged"),
            (b"X-Mine", b"1"),
            (b"X-Other", b"2"),
            (b"X-Third", b"3"),
        )
    )
    request.set_header("X-User-Id", "42")
    sent = lines_of(head_of(request))
    assert sent[1:5] == [b"Host: a.example", b"Authorization: Bearer t", b"Accept-Language: de", b"X-Third: 3"]
    assert b"X-User-Id: 42" in sent
    assert b"X-Forwarded-For: 192.0.2.1" in sent
    assert not [line for line in sent if line.startswith((b"X-Mine", b"X-Other", b"Connection"))]


def test_a_plugin_may_set_or_remove_a_forwarding_field_but_not_the_framing():
    request = bare_request(headers=((b"Host", b"a.example"),))
    request.set_header("X-Forwarded-Proto", "https")
    request.remove_header("Forwarded")
    request.set_header("Transfer-Encoding", "chunked")
    request.set_header("Content-Length", "7")
    sent = lines_of(head_of(request))
    assert [line for line in sent if b"roto" in line] == [b"X-Forwarded-Proto: https"]
    assert not [line for line in sent if line.startswith((b"Forwarded", b"Transfer", b"Content"))]


@pytest.mark.parametrize(
    ("host", "changed", "fields", "line"),
    [
        (None, None, ((b"host", b"Mixed.Example:80"),), b"host: Mixed.Example:80"),
        (None, None, (), b"Host: own"),
        (b"Host: fixed\r\n", None, ((b"Host", b"a"),), b"Host: fixed"),
        (None, "plugin.example", ((b"Host", b"a"),), b"Host: plugin.example"),
        (b"Host: fixed\r\n", "plugin.example", ((b"Host", b"a"),), b"Host: fixed"),
    ],
)
def test_there_is_one_host_line_and_it_is_the_right_one(host, changed, fields, line):
    request = bare_request(headers=fields)
    if changed:
        request.set_header("Host", changed)
    sent = lines_of(head_of(request, host=host))
    assert [x for x in sent if normal(x) == b"host"] == [line]


def test_the_path_stands_behind_the_upstreams_own_and_keeps_its_bytes():
    request = bare_request(target="/a%2Fb/%C3%A9/\udcff?q=%20+&q=;&x")
    assert lines_of(head_of(request, prefix="/api/v1"))[0] == b"GET /api/v1/a%2Fb/%C3%A9/\xff?q=%20+&q=;&x HTTP/1.1"


CHANGES = st.sampled_from(
    [
        [],
        [("X-User-Id", "1", False)],
        [("X-User-Id", "2", False)],
        [("X-User-Id", None, False)],
        [("Host", "b.example", False)],
        [("Host", "c.example", False)],
        [("X-Forwarded-For", None, False), ("Via", "mine", False)],
        [("Accept", "a", True), ("Accept", "b", True), ("Content-Length", "7", False)],
    ]
)
CLIENTS = st.sampled_from(
    [("192.0.2.1", False, "http"), ("2001:db8::1", False, "http"), ("", True, "http"), ("192.0.2.1", True, "https")]
)
RAW = st.lists(
    st.tuples(
        st.sampled_from([b"Accept", b"X-B", b"x_user_id", b"Connection", b"X-Forwarded-For", b"X-Forwarded-Proto"]),
        st.sampled_from([b"X-B", b"192.0.2.9, 10.0.0.1", b"https"]),
    ),
    max_size=4,
).map(lambda fields: ((b"Host", b"a.example"), *fields))


@given(
    RAW,
    st.lists(
        st.tuples(CLIENTS, CHANGES, st.sampled_from([("GET", "/a"), ("GET", "/b?c"), ("POST", "/a")])), max_size=8
    ),
    st.sampled_from([None, None, b"Host: fixed\r\n"]),
)
def test_a_remembered_head_is_what_would_be_made_anew(fields, requests, host):
    remembering = maker(host=host, prefix="/api")
    notes = {}
    for (client, trusted, scheme), changes, (method, path) in requests:
        made = []
        for kept in (notes, {}):
            request = bare_request(method, path, fields)
            request.notes = kept
            request.client, request.scheme = client, scheme
            if trusted:
                request.state = {"trusted": True, "peer": "10.0.0.1"}
            for name, value, add in changes:
                if value is None:
                    request.remove_header(name)
                elif add:
                    request.add_header(name, value)
                else:
                    request.set_header(name, value)
            made.append(remembering.head(request))
        assert made[0] == made[1]


def test_what_a_plugin_decides_for_each_request_is_not_remembered():
    upstream, notes, fields = maker(), {}, ((b"Host", b"a.example"),)
    for path, word in (("/a", b"one"), ("/a", b"two"), ("/b", b"two")):
        for name in ("Host", "X-Word"):
            request = bare_request(target="/x", headers=fields)
            request.notes = notes
            request.target = path
            request.set_header(name, word.decode())
            sent = lines_of(upstream.head(request))
            assert sent[0] == b"GET %b HTTP/1.1" % path.encode()
            assert name.encode() + b": " + word in sent
            assert sum(normal(line) == b"host" for line in sent) == 1


def test_two_upstreams_do_not_share_what_they_remember():
    notes = {}
    first, second = maker(prefix="/one"), maker(prefix="/two")
    for upstream, line in ((first, b"GET /one/x HTTP/1.1"), (second, b"GET /two/x HTTP/1.1")) * 2:
        request = bare_request(target="/x", headers=((b"Host", b"a"),))
        request.notes = notes
        assert lines_of(upstream.head(request))[0] == line


def test_what_is_remembered_of_a_request_is_small():
    upstream = maker()
    for cookie, kept in ((b"a" * 100, True), (b"a" * 8000, False)):
        request = bare_request(headers=((b"Host", b"a"), (b"Cookie", cookie)))
        assert cookie in upstream.head(request)
        assert bool(request.notes) is kept


# -- back ------------------------------------------------------------------------------------------


@pytest.fixture
def plain():
    loop = asyncio.new_event_loop()
    yield PlainHeads(VIA, LIMITS, loop)
    loop.close()


def told(head):
    return head and (head.status, head.reason, head.lines, head.names, head.length, head.should_close)


NAME = st.sampled_from([b"X-A", b"Server", b"Set-Cookie", b"Connection", b"Keep-Alive", b"Via", b"ETag", b"Upgrade"])
ANSWERS = st.builds(
    lambda version, status, fields, length, end: (
        b"HTTP/1.%d %d Some Reason\r\n" % (version, status)
        + b"".join(name + b": " + value + b"\r\n" for name, value in fields)
        + (b"Content-Length: %d\r\n" % length if length is not None else b"")
        + end
    ),
    st.sampled_from([0, 1]),
    st.sampled_from([200, 201, 299, 404, 503, 100, 103, 101, 204, 304]),
    st.lists(st.tuples(NAME, VALUE), max_size=4),
    st.one_of(st.none(), st.integers(0, 10**7)),
    st.sampled_from([b"\r\n", b"Transfer-Encoding: chunked\r\n\r\n", b"Content-Length: 3\r\n\r\n", b"\n\r\n\r\n"]),
)


@given(st.lists(ANSWERS, max_size=6))
def test_a_plain_head_is_read_the_same_each_time_whatever_was_read_before(answers):
    loop = asyncio.new_event_loop()
    try:
        reader = PlainHeads(VIA, LIMITS, loop)
        for answer in [answer for answer in answers for _ in range(3)] + answers:
            assert told(reader.read(answer)) == told(PlainHeads(VIA, LIMITS, loop).read(answer))
    finally:
        loop.close()


@given(ANSWERS, st.binary(max_size=20))
def test_a_plain_head_and_what_follows_are_what_a_connections_parser_makes_of_them(answer, body):
    loop = asyncio.new_event_loop()
    try:
        head = PlainHeads(VIA, LIMITS, loop).read(answer)
        if head is None or head.length > 10**6:
            return
        body = (body + bytes(head.length))[: head.length]
        parser = HttpResponseParser(
            BaseProtocol(loop), loop, 1 << 20, read_until_eof=True, auto_decompress=False, **LIMITS
        )
        ((message, payload),), upgraded, _ = parser.feed_data(answer + body)
        assert (message.code, message.should_close, upgraded) == (head.status, head.should_close, False)
        assert payload.is_eof(), "the answer ends there"
        assert (payload.read_nowait() if body else b"") == body
    finally:
        loop.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\n\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\n\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-A: a\x01b\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 9000 + b"\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"\r\n\r\n",
    ],
)
def test_what_is_not_plain_is_left_to_the_connections_own_parser(plain, answer):
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    for _ in range(3):
        assert plain.read(answer) is None
        assert told(plain.read(ok)) == (200, "OK", VIA, (b"via",), 2, False), "and confuses no other answer"


async def test_only_so_many_heads_of_answers_are_remembered_and_only_what_came_twice(monkeypatch):
    monkeypatch.setattr(heads, "MAX_REMEMBERED", 10)
    plain = PlainHeads(VIA, LIMITS, asyncio.get_running_loop())
    for number in range(100):
        answer = b"HTTP/1.1 200 OK\r\nETag: %d\r\nContent-Length: 2\r\n\r\n" % number
        assert plain.read(answer) is not plain.read(answer), "once is not worth it"
        assert plain.read(answer) is plain.read(answer)
        assert len(plain._known) <= 10
        assert len(plain._known._seen) == SEEN
    long = b"HTTP/1.1 200 OK\r\nETag: " + b"a" * 5000 + b"\r\nContent-Length: 2\r\n\r\n"
    assert [told(plain.read(long)) for _ in range(3)] == [told(plain.read(long))] * 3
    assert plain._known.get(long) is None
