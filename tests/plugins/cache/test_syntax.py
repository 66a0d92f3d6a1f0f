"""The texts of fields, by the sections of RFC 9110, 9111, 9213 and 9651 that say how to read them."""

from __future__ import annotations

import re
import time
import tracemalloc
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict

from plugins.cache.syntax import (
    MAX_SECONDS,
    MAX_TARGETED,
    _full_year,
    joined,
    names_of,
    parse_age,
    parse_date,
    parse_directives,
    parse_targeted,
    seconds_of,
    tags_of,
    vary_names,
)

# -- Cache-Control ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "directives"),
    [
        ("max-age=60", {"max-age": "60"}),
        ("Max-Age=60 , PUBLIC", {"max-age": "60", "public": None}),
        ('max-age="60"', {"max-age": "60"}),
        ('max-age="60" , public', {"max-age": "60", "public": None}),
        ("max-age=60\t,\tpublic", {"max-age": "60", "public": None}),
        ('private="set-cookie, x", max-age=5', {"private": "set-cookie, x", "max-age": "5"}),
        ("max-age=1, max-age=2", {"max-age": "1"}),
        ("a b, no-store", {"no-store": None}),
        (",, ,no-store,", {"no-store": None}),
        ("", {}),
        ("extension=1, other", {"extension": "1", "other": None}),
        ('x="never closed, no-store', {"no-store": None}),
        ('x="a\\"b, c", no-store', {"no-store": None}),
        ('x="max-age=1, no-store", max-age=2', {"x": "max-age=1, no-store", "max-age": "2", "no-store": "?"}),
        ("max-age=", {"max-age": ""}),
        ("=60, no-store", {"no-store": None}),
        ("no-störe", {"no-store": "?", "no-störe": "?"}),
        ("no-store\x00", {"no-store": None}),
    ],
)
def test_5_2_directives(text: str, directives: dict[str, str | None]) -> None:
    found = parse_directives(text)
    assert {name: found.get(name, "?") for name in directives} == directives


@pytest.mark.parametrize(
    "text",
    [
        "no-cache no-store, max-age=60",
        'max-age=60, private="x no-store',
        "public; no-store",
        "no-store\u00a0private",
        'x="a" no-store',
        "no-store foo",
    ],
)
def test_5_2_what_cannot_be_read_still_forbids(text: str) -> None:
    """A comma or a quote that is missing must not turn what may not be stored into what may."""
    found = parse_directives(text)
    assert "no-store" in found or text.startswith("public;")


@pytest.mark.parametrize("name", ["private", "no-cache"])
@pytest.mark.parametrize("text", ['{}="set-cookie', "{} x", '{}="a" b', "x {}"])
def test_5_2_2_a_broken_form_that_names_fields_counts_for_the_whole_answer(name: str, text: str) -> None:
    found = parse_directives("max-age=60, " + text.format(name))
    assert name in found
    assert not names_of(found[name])


@pytest.mark.parametrize("name", ["private", "no-cache"])
@pytest.mark.parametrize(
    ("first", "second", "named"),
    [('="a"', "", None), ("", '="a"', None), ('="a"', '="b"', None), ('="a"', '="a"', "a"), ("=a", '="a"', "a")],
)
def test_5_2_2_fields_are_only_named_if_they_always_are(name: str, first: str, second: str, named: str | None) -> None:
    """Two servers on the way may each have added theirs."""
    assert parse_directives(f"{name}{first}, max-age=5, {name}{second}")[name] == named


def test_5_2_2_field_names() -> None:
    assert names_of(None) == names_of("") == names_of(" , ") == frozenset()
    assert names_of("Set-Cookie , x,,X") == {"set-cookie", "x"}


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("=60", 60),
        ("=0", 0),
        ("=0060", 60),
        ("=" + "0" * 50 + "60", 60),
        ("=2147483648", MAX_SECONDS),
        ("=2147483649", MAX_SECONDS),
        ("=" + "9" * 5000, MAX_SECONDS),
        ("", 0),
        ("=", 0),
        ("=-1", 0),
        ("=+1", 0),
        ("=1.5", 0),
        ("=1e3", 0),
        ("=0x10", 0),
        ("='60'", 0),
        ("=60s", 0),
        ("=60 70", 0),
        ("=1_000", 0),
        ("=٦٠", 0),
        ('="60 "', 0),
    ],
)
def test_1_2_2_and_4_2_1_seconds(value: str, seconds: int) -> None:
    """What is too large is the largest there is; what is no number is over at once."""
    assert seconds_of(parse_directives(f"max-age{value}"), "max-age") == seconds


def test_4_2_1_a_directive_that_is_not_there_says_nothing() -> None:
    assert seconds_of(parse_directives("s-maxage=1"), "max-age") is None


@given(st.text(max_size=60))
def test_no_cache_control_is_too_odd(text: str) -> None:
    found = parse_directives(text)
    for name in found:
        assert name == name.lower()
        assert re.fullmatch(r"[!#$%&'*+.^_`|~0-9a-z-]+", name)
        assert 0 <= (seconds_of(found, name) or 0) <= MAX_SECONDS


good = st.sampled_from(["no-store", "private", "max-age=5", 'x="a, \\" b"', "y=z", "", " ", 'no-cache="a,b"', "public"])


@given(st.lists(good, max_size=6))
def test_5_2_well_formed_directives_are_all_found_wherever_they_stand(parts: list[str]) -> None:
    text = ", ".join(parts)
    assert set(parse_directives(text)) == {part.partition("=")[0] for part in parts} - {"", " "}


def test_5_3_lines_are_one_list() -> None:
    fields = CIMultiDict([("Cache-Control", "max-age=60"), ("X", "y"), ("cache-control", "no-store")])
    assert dict(parse_directives(joined(fields, "Cache-Control"))) == {"max-age": "60", "no-store": None}
    assert joined(fields, "Other") == ""


# -- Age -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("60", 60),
        ("0", 0),
        (" 60 ", 60),
        ("60, 5", 60),
        ("000000000000000060", 60),
        ("9" * 30, MAX_SECONDS),
        ("2147483649", MAX_SECONDS),
        ("", 0),
        ("-60", 0),
        ("60.0", 0),
        ("60s", 0),
        ("x, 60", 0),
        ("٦٠", 0),
    ],
)
def test_5_1_age(text: str, seconds: int) -> None:
    """Of a list the first counts, and an invalid one is ignored."""
    assert parse_age(text) == seconds


# -- dates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", 784111777.0),
        ("sUN, 06 nOV 1994 08:49:37 gmt", 784111777.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 784111777.0),
        ("Sun Nov  6 08:49:37 1994", 784111777.0),
        ("Sun Nov 16 08:49:37 1994", 784975777.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Wed, 31 Dec 1969 23:59:59 GMT", -1.0),
        ("Thu, 29 Feb 2024 00:00:00 GMT", 1709164800.0),
        # A leap second nearly is the second before it.
        ("Sat, 31 Dec 2016 23:59:60 GMT", 1483228799.0),
        ("0", None),
        ("-1", None),
        ("", None),
        ("784111777", None),
        ("1994-11-06T08:49:37Z", None),
        ("Wed, 29 Feb 2023 00:00:00 GMT", None),
        ("Sun, 99 Nov 1994 99:99:99 GMT", None),
        ("Sun, 06 Nov 1994 24:00:00 GMT", None),
        ("Sun, 06 Nov 1994 08:49:61 GMT", None),
        ("Sun, 06 Nov 1994 08:49:99 GMT", None),
        ("Sun, 06 Nov 0000 08:49:37 GMT", None),
        ("Sun, 6 Nov 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 94 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994 08:49:37", None),
        ("Sun, 06 Nov 1994 08:49:37 UTC", None),
        ("Sun, 06 Nov 1994 08:49:37 +0000", None),
        ("Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT", None),
        ("Sun,  06 Nov 1994 08:49:37 GMT", None),
        ("Sun, ٠٦ Nov 1994 08:49:37 GMT", None),
        ("Sun, 06 Növ 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994 08:49:37 GMT" + " " * 300, None),
    ],
)
def test_rfc_9110_5_6_7_dates(text: str, seconds: float | None) -> None:
    assert parse_date(text) == seconds


@given(st.datetimes(datetime(1000, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)))
def test_rfc_9110_5_6_7_each_second_can_be_written_in_the_preferred_format(when: datetime) -> None:
    assert parse_date(format_datetime(when, usegmt=True)) == when.replace(microsecond=0).timestamp()


@given(st.integers(-49, 49))
def test_rfc_9110_5_6_7_two_digits_are_a_year_in_the_next_50_or_the_last_that_ended_so(years: int) -> None:
    year = datetime.now(UTC).year + years
    when = datetime(year, 6, 15, 12, tzinfo=UTC)
    assert parse_date(f"{when:%A}, 15-Jun-{year % 100:02} 12:00:00 GMT") == when.timestamp()


@pytest.mark.parametrize(
    ("digits", "now", "year"),
    [(76, 2026, 2076), (77, 2026, 1977), (99, 2026, 1999), (0, 2026, 2000), (26, 2026, 2026), (10, 1990, 1910)],
)
def test_rfc_9110_5_6_7_the_pivot(digits: int, now: int, year: int) -> None:
    assert _full_year(digits, now) == year


@given(st.text(max_size=40))
@example("Sun, 06 Nov 1994 08:49:37 GMT\n")
def test_no_date_is_too_odd(text: str) -> None:
    parsed = parse_date(text)
    assert parsed is None or abs(parsed) < timedelta(days=366 * 10_000).total_seconds()


# -- RFC 9213 --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "directives"),
    [
        ("max-age=60", {"max-age": "60"}),
        ("max-age=60;x=1, must-revalidate", {"max-age": "60", "must-revalidate": None}),
        ("max-age=1, max-age=2", {"max-age": "2"}),
        ('private="a, b", no-cache', {"private": "a, b", "no-cache": None}),
        # Wrong types count as if they were not there.
        ("max-age=60.0, no-store", {"no-store": None}),
        ('max-age="60", no-store', {"no-store": None}),
        ("max-age=-1, no-store", {"no-store": None}),
        ("no-store=?0, max-age=5", {"max-age": "5"}),
        ("max-age=(1 2), no-store", {"no-store": None}),
        # Not a dictionary, or nothing in it: the field says nothing.
        ("", None),
        ("   ", None),
        ("max-age=60, &&&", None),
        ("MAX-AGE=60", None),
        ("max-age=60,", None),
        ("max-age=60 no-store", None),
        ("max-age=,", None),
        ("max-age=99999999999999999999", None),
        ("max-age=60, ü", None),
        ("\ud800", None),
        ("a" * (MAX_TARGETED + 1), None),
    ],
)
def test_rfc_9213_2_1_a_targeted_field_is_a_dictionary(text: str, directives: dict[str, str | None] | None) -> None:
    assert parse_targeted(text) == directives


@given(st.text(max_size=80) | st.text(alphabet='a1-=;,.:*?()"\\ ', max_size=80))
def test_rfc_9213_no_targeted_field_is_too_odd(text: str) -> None:
    found = parse_targeted(text)
    assert found is None or found


# -- Vary, tags ------------------------------------------------------------------------------------


def test_4_1_vary_is_one_list_over_all_lines() -> None:
    assert vary_names(CIMultiDict([("Vary", "B, a"), ("Vary", "a , X_C")])) == ("a", "b", "x-c")
    assert vary_names(CIMultiDict()) == ()
    assert vary_names(CIMultiDict([("Vary", "")])) == ()
    assert vary_names(CIMultiDict([("Vary", ", ".join(f"x{n}" for n in range(16)))])) is not None
    assert vary_names(CIMultiDict([("Vary", ", ".join(f"x{n}" for n in range(17)))])) is None


@pytest.mark.parametrize("vary", ["*", "a, *", "*, a", " * ", "a,*,b"])
def test_4_1_a_star_never_matches(vary: str) -> None:
    assert vary_names(CIMultiDict([("Vary", "accept"), ("Vary", vary)])) is None


def test_tags() -> None:
    fields = CIMultiDict([("Cache-Tag", "a, b"), ("Surrogate-Key", "c b"), ("Other", "d")])
    assert tags_of(fields, ("Cache-Tag", "Surrogate-Key")) == ("a", "b", "c")


# -- bounds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "a=" + " " * 1_000_000 + '"',
        " " * 1_000_000 + '"',
        'a="' * 333_000,
        '"\\' * 500_000,
        "," * 1_000_000 + '"',
        '"" ,' * 250_000,
        'no-cache="a",' * 80_000,
        "no-store " * 110_000,
        "0" * 1_000_000,
        "max-age=" + "0" * 1_000_000 + "x",
        "a" * 1_000_000 + "=",
    ],
    ids=["spaces", "indent", "quotes", "escapes", "commas", "empty", "named", "words", "zeros", "number", "name"],
)
def test_no_text_that_somebody_may_send_takes_long_to_read(text: str) -> None:
    """A hundred lines of 8 KB are within a request's bounds, and one request must not stop all the others.

    What is not linear takes minutes."""
    fields = CIMultiDict([("Vary", text), ("Cache-Tag", text)])
    started = time.process_time()
    seconds_of(parse_directives(text), "max-age")
    parse_date(text)
    parse_age(text)
    parse_targeted(text)
    vary_names(fields)
    tags_of(fields, ("Cache-Tag",))
    assert time.process_time() - started < 3


def test_long_texts_are_not_remembered() -> None:
    tracemalloc.start()
    try:
        for number in range(300):
            parse_directives(f"x{number}=" + "y" * 100_000)
            parse_date(f"{number}" + "y" * 100_000)
        assert tracemalloc.get_traced_memory()[0] < 5 << 20
    finally:
        tracemalloc.stop()
