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
    Told,
    forwarding_lines,
    response_lines,
)
from tests.upstream.raw import lines_of

TOKEN = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.!~", min_size=1, max_size=20)
VALUE = st.binary(max_size=30).map(lambda value: bytes(b for b in value if b >= 32 and b != 127).strip())
FIELDS = st.lists(
    st.tuples(
        st.one_of(TOKEN.map(str.encode), st.sampled_from(sorted(NOT_SENT | END_TO_END | FORWARDING))),
        VALUE,
    ),
    max_size=12,
)


@given(FIELDS)
def test_an_answers_fields_pass_byte_for_byte_and_their_names_are_told(fields):
    headers = CIMultiDictProxy(
        CIMultiDict((name.decode(), value.decode("utf-8", "surrogateescape")) for name, value in fields)
    )
    head, names = response_lines(tuple(fields), headers, 200, b"Via: 1.1 gateway\r\n")
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
        response_lines(((b"X-A", value),), headers, 200, b"Via: 1.1 gateway\r\n")


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
    lines = forwarding_lines(peer, "http", "a.example", "gateway", Told(**more)).decode().splitlines()
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
