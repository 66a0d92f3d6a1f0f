"""URLs of Redis: what they say, and what is said about wrong ones."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.store.url import Place, parse, tls_context


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", {"kind": "single", "hosts": (("h", 6379),), "tls": None}),
        ("redis://", {"hosts": (("localhost", 6379),)}),
        ("redis://h:1/2", {"hosts": (("h", 1),), "db": 2}),
        ("redis://[::1]:7", {"hosts": (("::1", 7),)}),
        ("redis://:p%40%2F@h", {"username": "", "password": "p@/"}),
        ("redis://u:p@h?db=3", {"username": "u", "password": "p", "db": 3}),
        ("redis://h?username=u&password=p%26q", {"username": "u", "password": "p&q"}),
        ("rediss://h", {"tls": {}}),
        (
            "rediss://h?ssl_ca_certs=/ca&ssl_check_hostname=no&ssl_server_name=redis.internal",
            {"tls": {"ssl_ca_certs": "/ca", "ssl_check_hostname": False}, "server_name": "redis.internal"},
        ),
        ("unix:///run/a%20b.sock?db=1&password=p", {"path": "/run/a b.sock", "db": 1, "password": "p", "hosts": ()}),
        ("unix://:p@/run/a.sock", {"path": "/run/a.sock", "password": "p"}),
        (
            "redis+sentinel://u:p@a,b:1,[::2]:3/main?db=2&sentinel_username=s&sentinel_password=t",
            {
                "kind": "sentinel",
                "hosts": (("a", 26379), ("b", 1), ("::2", 3)),
                "service": "main",
                "username": "u",
                "password": "p",
                "db": 2,
                "sentinel": {"username": "s", "password": "t"},
                "sentinel_tls": None,
            },
        ),
        ("rediss+sentinel://a/main", {"tls": {}, "sentinel_tls": {}}),
        ("rediss+sentinel://a/main?sentinel_ssl=false", {"tls": {}, "sentinel_tls": None}),
        ("redis+sentinel://a/main?sentinel_ssl=true", {"tls": None, "sentinel_tls": {}}),
        ("rediss+sentinel://a/main?ssl_server_name=b", {"tls": {}, "sentinel_tls": {}, "server_name": "b"}),
        ("rediss+cluster://a?ssl_server_name=b", {"tls": {}, "server_name": "b"}),
        ("redis+cluster://:p@a:1,b", {"kind": "cluster", "hosts": (("a", 1), ("b", 6379)), "password": "p"}),
        ("rediss+cluster://a/0", {"kind": "cluster", "tls": {}, "db": 0}),
    ],
)
def test_what_a_url_says(url: str, expected: dict[str, Any]) -> None:
    place = parse(url)
    assert {name: getattr(place, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:6379", 'expected "embedded", "redis://host:6379/0"'),
        ("redis:/host", 'expected "embedded"'),
        ("http://host", 'expected "embedded"'),
        ("redisss://host", 'expected "embedded"'),
        ("rediss+http://host", 'expected "embedded"'),
        ("redis://a,b", 'several hosts: expected "redis+sentinel://'),
        ("redis://h:99999", "expected HOST, HOST:PORT"),
        ("redis://h:x", "percent-encoded"),
        ("redis://:hunter2/x@h", "percent-encoded"),
        ("redis://:hunter2#x@h", "percent-encoded"),
        ("redis://[::1", "percent-encoded"),
        ("redis://hunter2@h", "expected user:password@"),
        ("redis://h/main", "number of a database"),
        ("redis://h?db=x", "db in the URL: expected a number"),
        ("redis://h?pasword=hunter2", "did you mean 'password'?"),
        ("redis://h?hunter2=hunter2", "redis:// knows username, password, db"),
        ("redis://h?ssl_ca_certs=/ca", 'expected "rediss" instead of "redis"'),
        ("rediss://h?ssl_check_hostname=perhaps", "ssl_check_hostname in the URL: expected true or false"),
        ("rediss://h?ssl_cert_reqs=never", 'expected "required", "optional" or "none"'),
        ("redis://h?sentinel_password=hunter2", "sentinel_password goes with"),
        ("redis+sentinel://a,b", "what the Sentinels call the primary"),
        ("redis+sentinel://a/main/0", "a database stands in ?db=1"),
        ("redis+sentinel:///main", "expected HOST"),
        ("redis+sentinel://a,,b/main", "expected HOST"),
        ("redis+cluster://", "expected HOST"),
        ("redis+cluster://a/1", "a cluster has no databases"),
        ("redis+cluster://a?ssl_server_name=b", 'ssl_server_name goes with TLS: expected "rediss"'),
        ("unix://run/a.sock", "expected the path of a socket"),
        ("unix://", "expected the path of a socket"),
    ],
)
def test_what_is_said_about_a_wrong_one(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        parse(url)
    assert "hunter2" not in str(caught.value)


def test_a_place_does_not_show_its_passwords() -> None:
    place = parse("redis+sentinel://user:hunter2@a/main?sentinel_password=hunter3")
    assert "hunter" not in repr(place)


@given(st.text(max_size=60))
def test_any_text_is_a_place_or_a_value_error(text: str) -> None:
    for scheme in ("", "redis://", "rediss+sentinel://", "redis+cluster://", "unix://"):
        with contextlib.suppress(ValueError):
            assert isinstance(parse(scheme + text), Place)


def test_files_that_are_not_there_are_told_by_their_options() -> None:
    with pytest.raises(ValueError, match="ssl_ca_certs cannot be used: No such file"):
        tls_context({"ssl_ca_certs": "/nowhere/ca.pem"})
