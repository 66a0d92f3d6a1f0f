"""RFC 9111 as a table: what is kept, for how long, and for whom."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from plugins.cache.conditions import not_modified
from plugins.cache.policy import (
    EXPIRED,
    FRESH,
    MAX_LIFE,
    RELOAD,
    STALE,
    Plan,
    Rules,
    judge,
    plan,
    shared_error,
)
from plugins.cache.syntax import MAX_SECONDS, parse_date, parse_directives, seconds_of, tags_of, vary_names

NOW = 1_000_000_000.0  # Sun, 09 Sep 2001 01:46:40 GMT
DATE = "Sun, 09 Sep 2001 01:46:40 GMT"


def made(
    *fields: tuple[str, str],
    status: int = 200,
    shared: bool = True,
    authorized: bool = False,
    rules: Rules | None = None,
    sent: float = NOW,
) -> Plan | str:
    return plan(
        status,
        CIMultiDict(fields),
        shared=shared,
        authorized=authorized,
        rules=rules or Rules(),
        sent=sent,
        received=NOW,
    )


def life(*fields: tuple[str, str], rules: Rules | None = None, status: int = 200, **options: bool) -> float | str:
    """Seconds of freshness that are left, or why it is not kept."""
    result = made(*fields, rules=rules, status=status, **options)
    return result if isinstance(result, str) else result.expires - NOW


@pytest.mark.parametrize(
    ("text", "directives"),
    [
        ("max-age=60", {"max-age": "60"}),
        ("Max-Age=60 , PUBLIC", {"max-age": "60", "public": None}),
        ('max-age="60"', {"max-age": "60"}),
        ('private="set-cookie, x", max-age=5', {"private": "set-cookie, x", "max-age": "5"}),
        ("max-age=1, max-age=2", {"max-age": "1"}),
        ("a b, no-store", {"no-store": None}),
        (",, ,no-store,", {"no-store": None}),
        ("", {}),
        ('x="never closed, no-store', {"no-store": None}),
    ],
)
def test_directives(text: str, directives: dict[str, str | None]) -> None:
    found = parse_directives(text)
    assert {name: found.get(name, "?") for name in directives} == directives


@given(st.text(max_size=60))
def test_no_cache_control_is_too_odd(text: str) -> None:
    for name in parse_directives(text):
        assert 0 <= (seconds_of(parse_directives(text), name) or 0) <= MAX_SECONDS


def test_no_store_is_found_wherever_it_stands() -> None:
    assert "no-store" in parse_directives('x="a\\"b, c", no-store')


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", 784111777.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 784111777.0),
        ("Sun Nov  6 08:49:37 1994", 784111777.0),
        ("0", None),
        ("-1", None),
        ("", None),
        ("Sun, 99 Nov 1994 99:99:99 GMT", None),
    ],
)
def test_dates(text: str, seconds: float | None) -> None:
    assert parse_date(text) == seconds


@given(st.text(max_size=40))
def test_no_date_is_too_odd(text: str) -> None:
    parse_date(text)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([], "not-fresh"),
        ([("Cache-Control", "max-age=60")], 60),
        ([("Cache-Control", "max-age=60, s-maxage=10")], 10),
        ([("Cache-Control", "max-age=0")], "not-fresh"),
        ([("Cache-Control", "max-age=soon")], "not-fresh"),
        ([("Cache-Control", "max-age=60"), ("Cache-Control", "no-store")], "no-store"),
        ([("Cache-Control", "max-age=60, no-cache")], "no-cache"),
        ([("Cache-Control", 'max-age=60, no-cache="x"')], 60),
        ([("Cache-Control", "max-age=60, must-understand, no-store")], 60),
        ([("Expires", "Sun, 09 Sep 2001 01:47:40 GMT")], 60),
        ([("Expires", "Sun, 09 Sep 2001 01:47:40 GMT"), ("Date", DATE)], 60),
        ([("Expires", "Sun, 09 Sep 2001 01:47:40 GMT"), ("Cache-Control", "max-age=5")], 5),
        ([("Expires", "0")], "not-fresh"),
        ([("Cache-Control", "max-age=60"), ("Age", "50")], 10),
        ([("Cache-Control", "max-age=60"), ("Age", "60")], "not-fresh"),
        ([("Cache-Control", "max-age=60"), ("Age", "x")], 60),
        ([("Cache-Control", "max-age=60"), ("Date", "Sun, 09 Sep 2001 01:46:00 GMT")], 20),
        ([("Cache-Control", "max-age=60"), ("Set-Cookie", "a=b")], "set-cookie"),
        ([("Cache-Control", "max-age=60"), ("Vary", "Accept, *")], "vary"),
        ([("Cache-Control", "max-age=31536000")], MAX_LIFE),
    ],
)
def test_how_long_a_shared_answer_is_kept(fields: list[tuple[str, str]], expected: float | str) -> None:
    assert life(*fields) == expected


def test_a_private_answer_is_kept_for_its_user_only() -> None:
    private = ("Cache-Control", "private, max-age=60")
    assert life(private) == "private"
    assert life(private, shared=False) == 60
    assert life(("Cache-Control", "no-store, max-age=60"), shared=False) == "no-store"
    assert life(private, ("Set-Cookie", "a=b"), shared=False) == "set-cookie"


@pytest.mark.parametrize("directive", ["public", "s-maxage=60", "must-revalidate"])
def test_authorization_needs_the_upstreams_word_in_a_shared_cache(directive: str) -> None:
    """RFC 9111, section 3.5."""
    assert life(("Cache-Control", "max-age=60"), authorized=True) == "authorization"
    assert life(("Cache-Control", f"max-age=60, {directive}"), authorized=True) == 60
    assert life(("Cache-Control", "max-age=60"), authorized=True, shared=False) == 60


@pytest.mark.parametrize("status", [206, 304, 416])
def test_parts_and_304_are_never_kept(status: int) -> None:
    assert life(("Cache-Control", "max-age=60"), status=status) == "status"


def test_ttl_is_for_answers_that_say_nothing() -> None:
    rules = Rules(ttl=30, ttl_by_status={404: 5, 503: 2})
    assert life(rules=rules) == 30
    assert life(("Cache-Control", "max-age=7"), rules=rules) == 7
    assert life(("Cache-Control", "no-store"), rules=rules) == "no-store"
    assert life(status=404, rules=rules) == 5
    assert life(status=403, rules=rules) == "not-fresh"
    assert life(status=503, rules=rules) == 2
    assert life(("Cache-Control", "max-age=60"), status=500, rules=rules) == 60


def test_stale_windows() -> None:
    """RFC 5861, and section 4.2.4 of RFC 9111."""
    rules = Rules(stale_while_revalidate=100, stale_if_error=200)

    def windows(control: str) -> tuple[float, float]:
        result = made(("Cache-Control", control), rules=rules)
        assert isinstance(result, Plan)
        return result.stale_until - result.expires, result.error_until - result.expires

    assert windows("max-age=60") == (100, 200)
    assert windows("max-age=60, stale-while-revalidate=5, stale-if-error=6") == (5, 6)
    assert windows("max-age=60, must-revalidate, stale-while-revalidate=5") == (0, 0)
    assert windows("s-maxage=60") == (0, 0)
    assert windows("s-maxage=60, stale-while-revalidate=5") == (5, 0)


def test_the_time_on_the_way_counts_behind_another_cache() -> None:
    result = made(("Cache-Control", "max-age=60"), ("Age", "10"), sent=NOW - 2)
    assert isinstance(result, Plan)
    assert result.born == NOW - 12


def entry(*, strict: bool = False) -> Plan:
    """Fresh until NOW + 60, then stale for another 30."""
    return Plan(NOW, NOW + 60, NOW + 60, NOW + 90, NOW + 90, NOW + 90, strict, ())


@pytest.mark.parametrize(
    ("asked", "age", "verdict"),
    [
        ("", 59, FRESH),
        ("", 60, STALE),
        ("", 90, EXPIRED),
        ("no-cache", 1, RELOAD),
        ("max-age=10", 10, FRESH),
        ("max-age=10", 11, RELOAD),
        ("max-age=0", 1, RELOAD),
        ("max-age=10", 61, EXPIRED),
        ("min-fresh=50", 5, FRESH),
        ("min-fresh=50", 15, RELOAD),
        ("max-stale", 5000, STALE),
        ("max-stale=10", 95, EXPIRED),
        ("max-stale=100", 95, STALE),
    ],
)
def test_what_a_stored_answer_is_good_for(asked: str, age: float, verdict: str) -> None:
    assert judge(entry(), parse_directives(asked), NOW + age) == verdict


def test_a_client_cannot_ask_for_what_must_be_revalidated() -> None:
    assert judge(entry(strict=True), parse_directives("max-stale"), NOW + 95) == EXPIRED


@given(max_age=st.integers(0, 10**6), age=st.integers(0, 10**6), delay=st.floats(0, 100), later=st.floats(0, MAX_LIFE))
def test_nothing_is_fresh_for_longer_than_it_says(max_age: int, age: int, delay: float, later: float) -> None:
    fields = CIMultiDict([("Cache-Control", f"max-age={max_age}"), ("Age", str(age))])
    result = plan(200, fields, shared=True, authorized=False, rules=Rules(), sent=NOW - delay, received=NOW)
    if isinstance(result, Plan) and judge(result, {}, NOW + later) == FRESH:
        assert age + later <= max_age


@pytest.mark.parametrize(
    ("conditions", "fields", "result"),
    [
        ({"if-none-match": '"a"'}, [("ETag", '"a"')], True),
        ({"if-none-match": 'W/"a"'}, [("ETag", '"a"')], True),
        ({"if-none-match": '"x", W/"a"'}, [("ETag", 'W/"a"')], True),
        ({"if-none-match": '"x"'}, [("ETag", '"a"')], False),
        ({"if-none-match": "*"}, [], True),
        ({"if-none-match": "a"}, [("ETag", '"a"')], False),
        ({"if-none-match": '"x"', "if-modified-since": DATE}, [("ETag", '"a"'), ("Last-Modified", DATE)], False),
        ({"if-modified-since": DATE}, [("Last-Modified", DATE)], True),
        ({"if-modified-since": "Sun, 09 Sep 2001 01:46:39 GMT"}, [("Last-Modified", DATE)], False),
        ({"if-modified-since": DATE}, [("Date", DATE)], True),
        ({"if-modified-since": "yesterday"}, [("Last-Modified", DATE)], False),
        ({"if-modified-since": DATE}, [], False),
    ],
)
def test_conditions(conditions: dict[str, str], fields: list[tuple[str, str]], result: bool) -> None:
    assert not_modified(conditions, CIMultiDict(fields)) is result


def test_vary_is_one_list_over_all_lines() -> None:
    assert vary_names(CIMultiDict([("Vary", "B, a"), ("Vary", "a , X_C")])) == ("a", "b", "x-c")
    assert vary_names(CIMultiDict()) == ()
    assert vary_names(CIMultiDict([("Vary", ", ".join(f"x{n}" for n in range(17)))])) is None


def test_tags() -> None:
    fields = CIMultiDict([("Cache-Tag", "a, b"), ("Surrogate-Key", "c b"), ("Other", "d")])
    assert tags_of(fields, ("Cache-Tag", "Surrogate-Key")) == ("a", "b", "c")


@pytest.mark.parametrize(
    "text",
    [
        "a=" + " " * 500_000 + '"',
        " " * 500_000 + '"',
        'a="' * 150_000,
        '"\\' * 250_000,
        "," * 500_000 + '"',
        '"" ,' * 99_999,
    ],
    ids=["spaces", "indent", "quotes", "escapes", "commas", "empty"],
)
def test_no_text_that_a_client_may_send_takes_long_to_read(text: str) -> None:
    """A hundred lines of 8 KB are within a request's bounds, and one request must not stop all the others."""
    started = time.process_time()
    parse_directives(text)
    parse_date(text)
    assert time.process_time() - started < 1


def test_long_texts_are_not_remembered() -> None:
    tracemalloc.start()
    try:
        for number in range(300):
            parse_directives(f"x{number}=" + "y" * 100_000)
            parse_date(f"{number}" + "y" * 100_000)
        assert tracemalloc.get_traced_memory()[0] < 5 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("control", "authorized", "told"),
    [("", False, True), ("", True, False), ("public", True, True), ("private", False, False), ("private", True, False)],
)
def test_who_may_be_told_of_anothers_error_where_there_is_one_copy_for_all(
    control: str, authorized: bool, told: bool
) -> None:
    fields = CIMultiDict([("Cache-Control", control)])
    assert (shared_error(fields, shared=True, authorized=authorized, rules=Rules()) is not None) == told
