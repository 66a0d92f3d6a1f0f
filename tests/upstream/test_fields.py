"""Which header fields pass, as pure functions; on the wire: test_forward.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.upstream import fields
from gateway.upstream.fields import (
    END_TO_END,
    FORWARDING,
    HOP_BY_HOP,
    NOT_SENT,
    forwarding_lines,
    request_head,
    response_head,
)
from tests.upstream.raw import bare_request, lines_of

TOKEN = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.!~", min_size=1, max_size=20)
VALUE = st.binary(max_size=30).map(lambda value: bytes(b for b in value if b >= 32 and b != 127).strip())
FIELDS = st.lists(
    st.tuples(
        st.one_of(TOKEN.map(str.encode), st.sampled_from(sorted(NOT_SENT | END_TO_END | FORWARDING))),
        VALUE,
    ),
    max_size=12,
)


def head_of(request, **options):
    defaults = {"prefix": "", "host": None, "default_host": b"Host: own\r\n", "via": "gateway", "upgrade": None}
    return request_head(request, **(defaults | options))


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


@given(FIELDS)
def test_an_answers_fields_pass_byte_for_byte_and_their_names_are_told(fields):
    headers = CIMultiDictProxy(
        CIMultiDict((name.decode(), value.decode("utf-8", "surrogateescape")) for name, value in fields)
    )
    head, names = response_head(tuple(fields), headers, 200, b"Via: 1.1 gateway\r\n")
    sent = lines_of(head)
    assert sorted(names) == sorted(line.partition(b":")[0].lower() for line in sent)
    assert sent[-1] == b"Via: 1.1 gateway"
    assert not HOP_BY_HOP & set(names)
    assert b"content-length" not in names
    assert [line for line in sent[:-1] if line not in [n + b": " + v for n, v in fields]] == []


@pytest.mark.parametrize("value", [b"a\rb", b"a\nb", b"a\r\nSet-Cookie: evil=1", b"a\x00b", b"a\x7fb", b"a\x1bb"])
def test_an_answer_with_a_control_character_in_a_field_is_not_passed_on(value):
    headers = CIMultiDictProxy(CIMultiDict([("X-A", "a")]))
    with pytest.raises(ValueError, match="control character"):
        response_head(((b"X-A", value),), headers, 200, b"Via: 1.1 gateway\r\n")


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
    request = bare_request(path="/a%2Fb/%C3%A9/\udcff?q=%20+&q=;&x")
    assert lines_of(head_of(request, prefix="/api/v1"))[0] == b"GET /api/v1/a%2Fb/%C3%A9/\xff?q=%20+&q=;&x HTTP/1.1"


@pytest.mark.parametrize(
    ("peer", "more", "x_forwarded_for", "forwarded"),
    [
        ("192.0.2.1", {}, "192.0.2.1", "for=192.0.2.1;host=a.example;proto=http"),
        ("2001:db8::1", {}, "2001:db8::1", 'for="[2001:db8::1]";host=a.example;proto=http'),
        ("", {}, "unknown", "for=unknown;host=a.example;proto=http"),
        (
            "10.0.0.1",
            {"chain": "203.0.113.9, 2001:db8::2,[2001:db8::3]:80, junk"},
            "203.0.113.9, 2001:db8::2, [2001:db8::3]:80, junk, 10.0.0.1",
            'for=203.0.113.9, for="[2001:db8::2]", for="[2001:db8::3]", for=unknown, '
            "for=10.0.0.1;host=a.example;proto=http",
        ),
        (
            "10.0.0.1",
            {"chain": "203.0.113.9", "forwarded": "for=203.0.113.9;proto=https", "proto": "https"},
            "203.0.113.9, 10.0.0.1",
            "for=203.0.113.9;proto=https, for=10.0.0.1;host=a.example;proto=https",
        ),
    ],
)
def test_forwarding_fields(peer, more, x_forwarded_for, forwarded):
    lines = forwarding_lines(peer, "http", "a.example", "gateway", **more).decode().splitlines()
    assert f"X-Forwarded-For: {x_forwarded_for}" in lines
    assert f"Forwarded: {forwarded}" in lines
    assert "Via: 1.1 gateway" in lines


def test_a_host_with_a_port_is_quoted_in_forwarded():
    lines = forwarding_lines("192.0.2.1", "http", "[::1]:8080", "gateway").decode().splitlines()
    assert 'Forwarded: for=192.0.2.1;host="[::1]:8080";proto=http' in lines
    assert "X-Forwarded-Host: [::1]:8080" in lines


def test_a_request_without_host_tells_no_forwarded_host():
    lines = forwarding_lines("192.0.2.1", "http", "", "gateway").decode().splitlines()
    assert "Forwarded: for=192.0.2.1;proto=http" in lines
    assert not [line for line in lines if line.startswith("X-Forwarded-Host")]


def test_long_connection_fields_are_not_remembered() -> None:
    """Each would keep megabytes for nothing: nobody sends the same one twice but an attacker."""
    before = fields._options.cache_info().currsize
    for number in range(3):
        value = ",".join(f"x-{number}-{index}" for index in range(1000))
        headers = CIMultiDictProxy(CIMultiDict([("Connection", value)]))
        assert f"x-{number}-999".encode() in fields.named_by_connection(headers)
    assert fields._options.cache_info().currsize == before
