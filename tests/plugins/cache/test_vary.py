"""What an answer varies on: RFC 9111, section 4.1, and RFC 9110, section 12.5."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.cache.vary import CookieNames, selecting


def request(*lines: tuple[str, str], changes: dict[bytes, bytes | None] | None = None) -> Any:
    raw = tuple((name.encode(), value.encode()) for name, value in lines)
    return SimpleNamespace(
        raw_headers=raw, changes=changes or {}, state={}, client="1.2.3.4", scheme="http", host="h"
    )  # fmt: skip


def key(name: str, *values: str) -> list[str]:
    made = request(*[(name, value) for value in values])
    return selecting(made, [name.lower()], made.changes)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("Accept-Language", ["en, de", "de,en", "DE , en", "en;q=1.0, de", "de;q=1,en ; q=1.000", "en, de,, de"]),
        ("Accept-Language", ["en, de;q=0.5", "de;q=0.500,en", "DE; q=0.50 , en"]),
        ("Accept-Encoding", ["gzip, br", "br, GZIP;q=1"]),
        ("Accept", ["text/html, a/b;q=0.1", "a/b;q=0.100 , Text/HTML"]),
        ("Accept", ["a/b;level=1;q=0.3", "a/b; LEVEL=1;q=0.30"]),
        ("Foo", ["1,2", " 1, 2 ", "1 ,\t2"]),
    ],
)  # fmt: skip
def test_values_that_mean_the_same_select_the_same(name: str, values: list[str]) -> None:
    assert len({tuple(key(name, value)) for value in values}) == 1


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("Accept-Language", "en, de;q=0.5", "de, en;q=0.5"),
        ("Accept-Language", "en;q=0", "en"),
        ("Accept-Language", "", "en"),
        ("Accept-Language", "en;q=5", "en"),
        ("Accept-Language", "en;q=0.1234", "en;q=0.123"),
        ("Accept-Language", "en;x=1", "en"),
        ("Accept", "a/b;p=X", "a/b;p=x"),
        ("Accept", 'a/b;p="x, y"', 'a/b;p="x,y"'),
        ("Accept", "a/b;q=0.5;ext=1", "a/b;q=0.5"),
        ("Foo", "a", "A"),
        ("Foo", "1, 2", "2, 1"),
        ("Foo", '"1,2"', '"1, 2"'),
        ("Foo", "1,2", "12"),
        ("User-Agent", "a (b, c)", "a (b,c)"),
        ("Cookie", "a=1,2", "a=1, 2"),
    ],
)
def test_values_that_do_not_select_otherwise(name: str, one: str, other: str) -> None:
    assert key(name, one) != key(name, other)


def test_several_lines_are_one_list_but_where_there_are_none() -> None:
    assert key("Foo", "1", "2") == key("Foo", "1, 2")
    assert key("Accept-Language", "en", "de") == key("Accept-Language", "de, en")
    assert key("User-Agent", "a", "b") != key("User-Agent", "a, b")


def test_a_field_that_is_not_there_is_not_empty() -> None:
    for name in ("Foo", "Accept-Language", "User-Agent"):
        assert key(name) != key(name, "")


def test_another_spelling_of_a_fields_name_is_not_taken_for_it() -> None:
    def of(*lines: tuple[str, str]) -> list[str]:
        return selecting(request(*lines), ["x-foo"], {})

    # Some servers see one list here, some two fields.
    assert of(("X-Foo", "1"), ("X_Foo", "2")) != of(("X-Foo", "1, 2"))
    assert of(("X-Foo", "1"), ("X_Foo", "2")) != of(("X-Foo", "1"))
    assert of(("X_Foo", "1")) != of(("X-Foo", "1"))
    assert of(("X_Foo", "1")) != of(("X-Foo", "x_foo:1"))


def test_what_plugins_write_counts_instead_of_what_the_client_sent() -> None:
    def of(changes: dict[bytes, bytes | None], *lines: tuple[str, str]) -> list[str]:
        return selecting(request(*lines), ["x-plan"], changes)

    gold = {b"x-plan": b"X-Plan: gold\r\n"}
    assert of(gold, ("X-Plan", "free")) == of(gold) != of({b"x-plan": b"X-Plan: free\r\n"})
    assert of({b"x-plan": None}, ("X-Plan", "free")) == of({}) != of({}, ("X-Plan", "free"))
    beside = {b"x-plan ": b"X-Plan: gold\r\n"}
    assert of(beside) != of({})
    assert of(beside, ("X-Plan", "free")) != of(beside)


names = st.sampled_from(["accept", "accept-language", "foo", "user-agent"])
values = st.lists(st.sampled_from(["a", "b", "a/b", ";q=1", ";q=0.5", ",", ", ", " ", '"', ";p=A", "*"]), max_size=5)


@given(names, values.map("".join), values.map("".join))
def test_who_selects_the_same_accepts_the_same(name: str, one: str, other: str) -> None:
    def read(value: str) -> Any:
        parts = [part.strip() for part in value.split(",")]
        if '"' in value or name == "user-agent":
            return value.strip()
        if name == "foo":
            return parts
        split = [part.replace("q=1", "").replace(" ", "").rstrip(";") for part in parts if part]
        return {part if "p=" in part else part.lower() for part in split}

    if key(name, one) == key(name, other):
        assert read(one) == read(other)


# -- cookies ---------------------------------------------------------------------------------------


def cookies(*lines: str, name: str = "country") -> list[str]:
    return CookieNames([name]).read(request(*[("Cookie", line) for line in lines]))


def test_only_the_cookies_that_are_named_count() -> None:
    assert cookies("a=1; country=DE") == cookies("country=DE; b=2") == cookies("my_country=FR; country=DE")
    assert cookies("country=DE") != cookies("country=FR")
    assert cookies("country=") != cookies("a=1") == cookies()


@pytest.mark.parametrize(
    "line",
    [
        "country=FR; country=DE",
        "a=1, country=FR; country=DE",
        'a="x; country=FR"; country=DE',
        "%63ountry=FR; country=DE",
        "a=%3Bcountry=FR; country=DE",
        "COUNTRY=FR; country=DE",
        "country[]=FR; country=DE",
        "country =FR; country=DE",
        'country="DE"',
    ],
)
def test_a_cookie_that_only_some_servers_find_is_told_apart(line: str) -> None:
    assert cookies(line) != cookies("country=DE")


def test_a_name_that_servers_change_is_found_all_the_same() -> None:
    assert cookies("my.country=FR; my_country=DE", name="my_country") != cookies("my_country=DE", name="my_country")


def test_cookies_are_those_that_the_upstream_gets() -> None:
    read = CookieNames(["country"]).read
    sent = ("Cookie", "country=DE")
    changed = request(sent, changes={b"cookie": b"Cookie: country=FR\r\n"})
    assert read(changed) == read(request(("Cookie", "country=FR")))
    assert read(request(sent, changes={b"cookie": None})) == read(request())
