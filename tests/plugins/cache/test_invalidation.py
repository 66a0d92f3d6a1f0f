"""What an unsafe request has changed: its own URL, and those of the same origin that its answer names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.plugin import Response
from plugins.cache.invalidation import MAX_URL, changed_urls


def changed(
    fields: dict[str, str], *, host: str = "api.test", target: str = "/a/b?c", scheme: str = "http"
) -> list[tuple[str, str]]:
    request: Any = SimpleNamespace(host=host, target=target, scheme=scheme)
    return changed_urls(request, Response(201, fields))


@pytest.mark.parametrize("name", ["Location", "content-location"])
@pytest.mark.parametrize(
    ("value", "target"),
    [
        ("/x", "/x"),
        ("x", "/a/x"),
        ("../x?y=z#part", "/x?y=z"),
        ("../../../x", "/x"),
        ("?d", "/a/b?d"),
        ("", None),
        ("#part", None),
        ("http://api.test", "/"),
        ("http://api.test/x", "/x"),
        ("HTTP://API.TEST/x", "/x"),
        ("//api.test/x", "/x"),
        ("http://api.test:80/x", "/x"),
        ("http://api.test:/x", "/x"),
        (" /x ", "/x"),
        ("https://api.test/x", None),
        ("http://api.test:8080/x", None),
        ("http://other.test/x", None),
        ("http://api.test.evil.test/x", None),
        ("http://api.test@evil.test/x", None),
        ("//evil.test\\@api.test/x", None),
        ("ftp://api.test/x", None),
        ("mailto:a@api.test", None),
        ("http://api.test:99999/x", None),
        ("http://api.test:x/x", None),
        ("//[", None),
        ("/" + "x" * MAX_URL, None),
    ],
)
def test_4_4_what_an_answer_names_on_its_own_origin(name: str, value: str, target: str | None) -> None:
    own = ("api.test", "/a/b?c")
    assert changed({name: value}) == ([own] if target is None else [own, ("api.test", target)])


def test_4_4_both_fields_count_and_each_url_once() -> None:
    urls = changed({"Location": "/x", "Content-Location": "/y"})
    assert urls == [("api.test", "/a/b?c"), ("api.test", "/x"), ("api.test", "/y")]
    assert changed({"Location": "/a/b?c", "Content-Location": "/a/b?c"}) == [("api.test", "/a/b?c")]


def test_4_4_an_implied_port_is_a_port() -> None:
    assert changed({"Location": "https://api.test/x"}, scheme="https", host="api.test:443")[1:] == [
        ("api.test:443", "/x")
    ]
    assert changed({"Location": "http://[::1]:8080/x"}, host="[::1]:8080")[1:] == [("[::1]:8080", "/x")]
    assert changed({"Location": "http://[::1]/x"}, host="[::1]:8080")[1:] == []


@given(
    st.text(alphabet="ab/:.?#@[]\\%20 htps\t", max_size=40) | st.text(max_size=40).filter(str.isprintable),
    st.sampled_from(["api.test", "api.test:8080", "[::1]", "[", "", "a:b", "api.test:99999"]),
)
def test_4_4_no_answer_can_name_what_is_not_its_own_or_break_the_purge_of_what_is(value: str, host: str) -> None:
    urls = changed({"Location": value}, host=host)
    assert urls[0] == (host, "/a/b?c")
    assert {named for named, _ in urls} == {host}
    assert all(target.startswith("/") for _, target in urls)
