"""RFC 9111 as a table: what is kept, for how long, and for whom. Sections are its own if no other RFC is named."""

from __future__ import annotations

import time
from dataclasses import replace
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from plugins.cache.policy import (
    EXPIRED,
    FRESH,
    HEURISTIC,
    MAX_LIFE,
    OF_A_PROXY,
    RELOAD,
    STALE,
    UNDERSTOOD,
    Plan,
    Rules,
    control,
    ended,
    is_common,
    judge,
    left_out,
    only_once,
    plan,
    shared_error,
)
from plugins.cache.syntax import names_of, parse_directives

NOW = 1_000_000_000.0  # Sun, 09 Sep 2001 01:46:40 GMT
DATE = "Sun, 09 Sep 2001 01:46:40 GMT"
TARGETED = ("Own-Cache-Control", "CDN-Cache-Control")

Field = tuple[str, str]


def at(seconds: float) -> str:
    """An HTTP date so many seconds from now."""
    return formatdate(NOW + seconds, usegmt=True)


def cc(value: str) -> Field:
    return ("Cache-Control", value)


def made(
    *fields: Field,
    status: int = 200,
    shared: bool = True,
    authorized: bool = False,
    rules: Rules | None = None,
    sent: float = NOW,
    chance: float = 0.0,
) -> Plan | str:
    return plan(
        status,
        CIMultiDict(fields),
        shared=shared,
        authorized=authorized,
        rules=rules or Rules(),
        sent=sent,
        received=NOW,
        chance=chance,
    )


def kept(*fields: Field, **options: object) -> Plan:
    result = made(*fields, **options)  # type: ignore[arg-type]
    assert isinstance(result, Plan), result
    return result


def life(*fields: Field, **options: object) -> float | str:
    """Seconds of freshness that are left, or why it is not kept."""
    result = made(*fields, **options)  # type: ignore[arg-type]
    return result if isinstance(result, str) else result.expires - NOW


# -- 4.2.1: freshness ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([], "not-fresh"),
        ([cc("max-age=60")], 60),
        ([cc("max-age=60, s-maxage=10")], 10),
        ([cc("s-maxage=10, max-age=60")], 10),
        ([cc("s-maxage=0, max-age=60")], "not-fresh"),
        ([cc("max-age=0")], "not-fresh"),
        ([cc("max-age=1, max-age=60")], 1),
        ([cc("max-age=60"), cc("max-age=1")], 60),
        ([cc("max-age=31536000")], MAX_LIFE),
        # What is invalid is over: 4.2.1, last paragraph.
        ([cc("max-age=soon")], "not-fresh"),
        ([cc("max-age")], "not-fresh"),
        ([cc("max-age=-1")], "not-fresh"),
        ([cc("max-age=1.5")], "not-fresh"),
        ([cc("s-maxage=soon, max-age=60")], "not-fresh"),
        ([cc("max-age=soon"), ("Expires", at(60))], "not-fresh"),
        ([cc("max-age 60"), ("Expires", at(60))], "not-fresh"),
    ],
)
def test_4_2_1_freshness(fields: list[Field], expected: float | str) -> None:
    assert life(*fields) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([("Expires", at(60))], 60),
        ([("Expires", at(60)), ("Date", DATE)], 60),
        # It is a span from `Date` on, whatever the clocks: section 4.2.1.
        ([("Expires", at(1060)), ("Date", at(1000))], 60),
        ([("Expires", at(0)), ("Date", DATE)], "not-fresh"),
        ([("Expires", at(-60))], "not-fresh"),
        ([("Expires", at(60)), ("Date", "some day")], 60),
        # Directives win, also if they say less: section 5.3.
        ([("Expires", at(60)), cc("max-age=5")], 5),
        ([("Expires", at(60)), cc("s-maxage=5")], 5),
        ([("Expires", at(60)), cc("max-age=0")], "not-fresh"),
        ([("Expires", "0"), cc("max-age=5")], 5),
        ([("Expires", at(60)), cc("public")], 60),
        # An invalid one is in the past, "0" above all: section 5.3.
        ([("Expires", "0")], "not-fresh"),
        ([("Expires", "")], "not-fresh"),
        ([("Expires", "in a minute")], "not-fresh"),
        ([("Expires", at(60)), ("Expires", at(60))], "not-fresh"),
        ([("Expires", "0"), ("Last-Modified", at(-1000))], "not-fresh"),
    ],
)
def test_5_3_expires(fields: list[Field], expected: float | str) -> None:
    assert life(*fields, rules=Rules(ttl=30, heuristic=0.1)) == expected


# -- 4.2.2: heuristics -----------------------------------------------------------------------------

LONG_AGO: Field = ("Last-Modified", at(-1000))
TENTH = Rules(heuristic=0.1)


@pytest.mark.parametrize("status", [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501])
def test_4_2_2_what_may_be_kept_without_a_word(status: int) -> None:
    assert status in HEURISTIC
    assert life(LONG_AGO, rules=TENTH, status=status) == 100


@pytest.mark.parametrize("status", [201, 202, 302, 303, 307, 400, 401, 403, 418, 429, 500, 502, 503, 504, 599])
def test_4_2_2_what_needs_a_word(status: int) -> None:
    assert life(LONG_AGO, rules=TENTH, status=status) == "not-fresh"
    assert life(LONG_AGO, cc("public"), rules=TENTH, status=status) == 100
    assert life(cc("max-age=60"), rules=TENTH, status=status) == 60


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([("Last-Modified", at(0))], "not-fresh"),
        ([("Last-Modified", at(60))], "not-fresh"),
        ([("Last-Modified", "some day")], "not-fresh"),
        # Over when it comes: it is as if it had ended at its birth.
        ([LONG_AGO, ("Date", at(-100))], -100),
        ([LONG_AGO, ("Date", at(1000))], 200),
        ([LONG_AGO, ("Age", "30")], 70),
        ([("Last-Modified", "Thu, 01 Jan 1970 00:00:00 GMT")], MAX_LIFE),
        # Whatever says a time counts instead.
        ([LONG_AGO, cc("max-age=5")], 5),
        ([LONG_AGO, ("Expires", at(5))], 5),
        # Neither a word about fields nor one about others says a time.
        ([LONG_AGO, cc('no-cache="x"')], 100),
        ([LONG_AGO, cc("must-revalidate")], 100),
    ],
)
def test_4_2_2_a_part_of_the_time_for_which_it_has_not_changed(fields: list[Field], expected: float | str) -> None:
    result = made(*fields, rules=replace(TENTH, keep=600))
    assert (result if isinstance(result, str) else result.expires - NOW) == expected


def test_4_2_2_none_where_none_is_wanted() -> None:
    assert life(LONG_AGO, rules=Rules(heuristic=0)) == "not-fresh"
    assert life(LONG_AGO, rules=Rules(heuristic=1)) == 1000


# -- 4.2.3: age ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "took", "age"),
    [
        ([], 0, 0),
        ([("Age", "10")], 0, 10),
        ([("Age", "10")], 2, 12),
        ([("Age", "10")], -2, 10),
        ([("Age", "10, 99")], 0, 10),
        ([("Age", "10"), ("Age", "99")], 0, 10),
        ([("Age", "x")], 2, 0),
        ([("Age", "-5")], 2, 0),
        ([("Age", "10.5")], 0, 0),
        ([("Date", at(-20))], 0, 20),
        ([("Date", at(20))], 0, 0),
        ([("Date", "some day")], 0, 0),
        # The larger of the two counts.
        ([("Date", at(-20)), ("Age", "10")], 2, 20),
        ([("Date", at(-20)), ("Age", "30")], 2, 32),
        ([("Age", "9" * 20)], 0, 2**31),
    ],
)
def test_4_2_3_age(fields: list[Field], took: float, age: float) -> None:
    result = (
        kept(cc("max-age=60, stale-while-revalidate=9999999999"), *fields, sent=NOW - took) if age < 2**31 else None
    )
    if result is None:
        assert life(cc("max-age=60, stale-while-revalidate=99999"), *fields) == "not-fresh"
    else:
        assert NOW - result.born == age
        assert result.expires == result.born + 60


def test_4_2_3_a_fraction_of_the_present_second_is_no_age() -> None:
    result = plan(
        200,
        CIMultiDict([cc("max-age=60"), ("Date", DATE)]),
        shared=True,
        authorized=False,
        rules=Rules(),
        sent=NOW + 0.5,
        received=NOW + 0.9,
    )
    assert isinstance(result, Plan)
    assert result.born == NOW + 0.9


def test_4_2_3_what_came_too_late_is_not_fresh() -> None:
    assert life(cc("max-age=60"), ("Age", "60")) == "not-fresh"
    assert life(cc("max-age=60"), ("Age", "50")) == 10
    assert life(cc("max-age=60"), ("Date", at(-40))) == 20


@given(max_age=st.integers(0, 10**6), age=st.integers(0, 10**6), delay=st.floats(0, 100), later=st.floats(0, MAX_LIFE))
def test_4_2_nothing_is_fresh_for_longer_than_it_says(max_age: int, age: int, delay: float, later: float) -> None:
    result = made(cc(f"max-age={max_age}"), ("Age", str(age)), sent=NOW - delay)
    if isinstance(result, Plan) and judge(result, {}, NOW + later) == FRESH:
        assert age + later <= max_age


# -- 4.2.4 and RFC 5861: stale answers -------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("max-age=60", (100, 200)),
        ("max-age=60, stale-while-revalidate=5, stale-if-error=6", (5, 6)),
        ("max-age=60, stale-while-revalidate=0, stale-if-error=0", (0, 0)),
        ("max-age=60, stale-while-revalidate=x, stale-if-error", (0, 0)),
        ("max-age=60, stale-while-revalidate=9999999", (MAX_LIFE - 60, 200)),
        ("max-age=60, must-revalidate, stale-while-revalidate=5", (0, 0)),
        ("max-age=60, proxy-revalidate, stale-if-error=5", (0, 0)),
        # RFC 9111, section 5.2.2.10: `s-maxage` is like `proxy-revalidate`, unless the upstream itself says more.
        ("s-maxage=60", (0, 0)),
        ("s-maxage=60, stale-while-revalidate=5", (5, 0)),
        ("s-maxage=60, stale-if-error=5", (0, 5)),
    ],
)
def test_rfc_5861_windows(said: str, expected: tuple[float, float]) -> None:
    result = kept(cc(said), rules=Rules(stale_while_revalidate=100, stale_if_error=200))
    assert (result.stale_until - result.expires, result.error_until - result.expires) == expected


def test_5_2_2_4_what_must_be_asked_about_is_never_stale() -> None:
    rules = Rules(stale_while_revalidate=100, stale_if_error=200, keep=300)
    result = kept(cc("no-cache, max-age=60, stale-while-revalidate=5, stale-if-error=5"), ("ETag", '"a"'), rules=rules)
    assert result.never_fresh
    assert (result.expires, result.stale_until, result.error_until) == (NOW, NOW, NOW)
    assert result.kept_until == NOW + 300
    for asked in ("", "max-stale", "max-stale=100"):
        assert judge(result, parse_directives(asked), NOW) == EXPIRED


@pytest.mark.parametrize("said", ["must-revalidate", "proxy-revalidate", "s-maxage=60"])
def test_4_2_4_no_client_may_ask_for_it_stale(said: str) -> None:
    result = kept(cc(f"max-age=60, {said}"), ("ETag", '"a"'), rules=Rules(keep=600))
    assert judge(result, parse_directives("max-stale=600"), NOW + 61) == EXPIRED
    relaxed = kept(cc("max-age=60"), ("ETag", '"a"'), rules=Rules(keep=600))
    assert judge(relaxed, parse_directives("max-stale=600"), NOW + 61) == STALE


def entry(*, strict: bool = False) -> Plan:
    """Fresh until NOW + 60, then stale for another 30."""
    return Plan(NOW, NOW + 60, NOW + 60, NOW + 90, NOW + 90, NOW + 90, strict, ())


@pytest.mark.parametrize(
    ("asked", "age", "verdict"),
    [
        ("", 0, FRESH),
        ("", -100, FRESH),
        ("", 59.9, FRESH),
        ("", 60, STALE),
        ("", 90, EXPIRED),
        ("unknown, x=1", 59, FRESH),
        # 5.2.1.4
        ("no-cache", 0, RELOAD),
        ("no-cache", 61, RELOAD),
        ("no-cache, max-stale", 61, RELOAD),
        # 5.2.1.1
        ("max-age=10", 10, FRESH),
        ("max-age=10", 11, RELOAD),
        ("max-age=0", 0, FRESH),
        ("max-age=0", 1, RELOAD),
        ("max-age=x", 1, RELOAD),
        ("max-age=10", 61, EXPIRED),
        ("max-age=1000", 61, EXPIRED),
        ("max-age=1000, max-stale", 61, STALE),
        ("max-age=10, max-stale", 61, EXPIRED),
        # 5.2.1.3
        ("min-fresh=50", 10, FRESH),
        ("min-fresh=50", 15, RELOAD),
        ("min-fresh=1", 61, EXPIRED),
        ("min-fresh=1, max-stale", 61, EXPIRED),
        # 5.2.1.2
        ("max-stale", 5000, STALE),
        ("max-stale=10", 95, EXPIRED),
        ("max-stale=35", 95, STALE),
        ("max-stale=x", 95, EXPIRED),
        ("max-stale=10", 75, STALE),
        # 5.2.1.7 and 5.2.1.6 are no matter of time.
        ("only-if-cached", 59, FRESH),
        ("no-transform", 59, FRESH),
    ],
)
def test_5_2_1_what_a_stored_answer_is_good_for(asked: str, age: float, verdict: str) -> None:
    assert judge(entry(), parse_directives(asked), NOW + age) == verdict


# -- 5.2.2: what the upstream says -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "shared", "own"),
    [
        ("no-store, max-age=60", "no-store", "no-store"),
        ("NO-STORE, max-age=60", "no-store", "no-store"),
        ("no-store=x, max-age=60", "no-store", "no-store"),
        ("private, max-age=60", "private", 60),
        ('private="", max-age=60', "private", 60),
        ("private=, max-age=60", "private", 60),
        ('private="x", max-age=60', 60, 60),
        ('private="x", private, max-age=60', "private", 60),
        ("private, public, max-age=60", "private", 60),
        ("no-cache, max-age=60", "no-cache", "no-cache"),
        ('no-cache="", max-age=60', "no-cache", "no-cache"),
        ("no-cache=, max-age=60", "no-cache", "no-cache"),
        ('no-cache="x", max-age=60', 60, 60),
        ('no-cache="x", no-cache, max-age=60', "no-cache", "no-cache"),
        ("no-cache no-store, max-age=60", "no-store", "no-store"),
        ("no-transform, max-age=60", 60, 60),
        ("immutable, max-age=60", 60, 60),
        ("must-revalidate, max-age=60", 60, 60),
        ("public", "not-fresh", "not-fresh"),
    ],
)
def test_5_2_2_directives(said: str, shared: float | str, own: float | str) -> None:
    assert life(cc(said)) == shared
    assert life(cc(said), shared=False) == own


@pytest.mark.parametrize("said", ["no-cache", 'no-cache=""', "no-cache, max-age=60"])
def test_5_2_2_4_no_cache_is_kept_to_be_asked_about(said: str) -> None:
    result = kept(cc(said), ("ETag", '"a"'), rules=Rules(keep=600))
    assert result.never_fresh
    assert result.strict
    assert result.kept_until == NOW + 600


@pytest.mark.parametrize("status", sorted(UNDERSTOOD - {206}))
def test_5_2_2_3_must_understand_replaces_no_store_where_the_status_is_known(status: int) -> None:
    assert life(cc("max-age=60, must-understand, no-store"), status=status) == 60
    assert life(cc("max-age=60, must-understand"), status=status) == 60


@pytest.mark.parametrize("status", [201, 299, 400, 418, 429, 500, 502, 503, 599])
def test_5_2_2_3_must_understand_forbids_where_it_is_not(status: int) -> None:
    assert life(cc("max-age=60, must-understand"), status=status) == "must-understand"
    assert life(cc("max-age=60, must-understand, no-store"), status=status) == "must-understand"
    assert life(cc("max-age=60"), status=status) == 60


def test_5_2_2_3_must_understand_lifts_nothing_but_no_store() -> None:
    assert life(cc("must-understand, no-store, private, max-age=60")) == "private"
    assert life(cc("must-understand, no-store, max-age=60"), ("Set-Cookie", "a=b")) == "set-cookie"


@pytest.mark.parametrize("directive", ["public", "s-maxage=60", "must-revalidate"])
def test_3_5_authorization_needs_the_upstreams_word_in_a_shared_cache(directive: str) -> None:
    assert life(cc("max-age=60"), authorized=True) == "authorization"
    assert life(cc("max-age=60, proxy-revalidate"), authorized=True) == "authorization"
    assert life(cc(f"max-age=60, {directive}"), authorized=True) == 60
    assert life(cc("max-age=60"), authorized=True, shared=False) == 60
    assert life(cc(f"private, max-age=60, {directive}"), authorized=True) == "private"


@pytest.mark.parametrize("status", [100, 103, 199, 206, 304, 416])
def test_3_what_is_not_final_or_not_the_whole_is_never_kept(status: int) -> None:
    rules = Rules(ttl=60, ttl_by_status={status: 60}, override=True)
    assert life(cc("max-age=60"), status=status) == "status"
    assert life(status=status, rules=rules) == "status"


@pytest.mark.parametrize("vary", ["*", "Accept, *", ", ".join(f"x{number}" for number in range(17))])
def test_4_1_what_could_never_be_found_again_is_not_kept(vary: str) -> None:
    assert life(cc("max-age=60"), ("Vary", vary)) == "vary"
    assert kept(cc("max-age=60"), ("Vary", "B, a")).vary == ("a", "b")


@pytest.mark.parametrize(
    ("said", "shared", "left"),
    [
        ('no-cache="a, B"', True, {"a", "b"}),
        ('no-cache="a, B"', False, {"a", "b"}),
        ('private="a"', True, {"a"}),
        ('private="a"', False, set()),
        ('private="a", no-cache="b"', True, {"a", "b"}),
        ("private, no-cache", True, set()),
        ("max-age=60", True, set()),
    ],
)
def test_5_2_2_4_and_7_named_fields_are_left_out(said: str, shared: bool, left: set[str]) -> None:
    assert left_out(parse_directives(said), Rules(), shared=shared) == left | OF_A_PROXY


def test_3_1_what_a_proxy_says_to_one_client_is_left_out() -> None:
    assert left_out({}, Rules(), shared=False) == OF_A_PROXY
    assert {"proxy-authenticate", "proxy-authentication-info"} < OF_A_PROXY


# -- RFC 9213 --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([("CDN-Cache-Control", "max-age=5"), cc("max-age=60")], 5),
        ([("CDN-Cache-Control", "max-age=5"), cc("no-store, private")], 5),
        ([("CDN-Cache-Control", "max-age=5"), ("Expires", "0")], 5),
        ([("CDN-Cache-Control", "no-store"), cc("max-age=60")], "no-store"),
        ([("CDN-Cache-Control", "private"), cc("max-age=60")], "private"),
        ([("CDN-Cache-Control", "must-revalidate"), cc("max-age=60"), ("Expires", at(60))], "not-fresh"),
        ([("CDN-Cache-Control", "max-age=5"), ("Own-Cache-Control", "max-age=7")], 7),
        ([("CDN-Cache-Control", "max-age=5"), ("Own-Cache-Control", "no-store")], "no-store"),
        ([("CDN-Cache-Control", "max-age=5"), ("Own-Cache-Control", "")], 5),
        ([("CDN-Cache-Control", "max-age=5"), ("Own-Cache-Control", "&&&")], 5),
        ([("CDN-Cache-Control", "max-age=5, &&&"), cc("max-age=60")], 60),
        ([("CDN-Cache-Control", "max-age=5"), ("CDN-Cache-Control", "no-store"), cc("max-age=60")], "no-store"),
        ([("Other-Cache-Control", "max-age=5"), cc("max-age=60")], 60),
    ],
)
def test_rfc_9213_2_2_the_first_valid_targeted_field_counts(fields: list[Field], expected: float | str) -> None:
    assert life(*fields, rules=Rules(targeted=TARGETED)) == expected


def test_rfc_9213_also_for_what_is_left_out_and_who_may_have_it() -> None:
    fields = CIMultiDict([("CDN-Cache-Control", 'no-cache="x", public'), cc('no-cache="y", private')])
    rules = Rules(targeted=TARGETED)
    assert left_out(control(fields, rules).directives, rules, shared=True) == {"x"} | OF_A_PROXY
    assert is_common(fields, rules)
    assert not is_common(fields, Rules())


@pytest.mark.parametrize(
    ("fields", "common"),
    [
        ([cc("public")], True),
        ([cc("s-maxage=0")], True),
        ([cc("max-age=60")], False),
        ([cc("public, private")], False),
        ([cc("s-maxage=60, private=x")], False),
        ([cc("public"), ("Set-Cookie", "a=b")], False),
    ],
)
def test_3_5_what_the_upstream_says_is_for_all(fields: list[Field], common: bool) -> None:
    assert is_common(CIMultiDict(fields), Rules()) is common


# -- what the configuration says -------------------------------------------------------------------


def test_ttl_is_for_answers_that_say_nothing() -> None:
    rules = Rules(ttl=30, ttl_by_status={404: 5, 503: 2}, heuristic=0.1)
    assert life(rules=rules) == 30
    assert life(LONG_AGO, rules=rules) == 30
    assert life(cc("public"), rules=rules) == 30
    assert life(cc("max-age=7"), rules=rules) == 7
    assert life(cc("max-age=0"), rules=rules) == "not-fresh"
    assert life(("Expires", "0"), rules=rules) == "not-fresh"
    assert life(cc("no-store"), rules=rules) == "no-store"
    assert life(cc("no-cache"), rules=rules) == "no-cache"
    assert life(cc("private"), rules=rules) == "private"
    assert life(status=404, rules=rules) == 5
    assert life(status=403, rules=rules) == "not-fresh"
    assert life(status=503, rules=rules) == 2
    assert life(cc("max-age=60"), status=500, rules=rules) == 60


@pytest.mark.parametrize("status", [302, 307, 400, 401, 403, 404, 410, 429, 500, 503])
def test_ttl_alone_keeps_no_errors_and_nothing_that_is_for_once(status: int) -> None:
    assert life(status=status, rules=Rules(ttl=30)) == "not-fresh"


def test_ttl_by_status_of_zero_is_a_word_too() -> None:
    assert life(rules=Rules(ttl=30, ttl_by_status={200: 0})) == "not-fresh"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("image/png", 7),
        ("IMAGE/PNG ; q=1", 7),
        ("image/gif", 9),
        ("image", 30),
        ("imagex/png", 30),
        ("text/plain", "not-fresh"),
        ("", 30),
    ],
)
def test_ttl_by_content_type(kind: str, expected: float | str) -> None:
    """The first that fits counts."""
    rules = Rules(ttl=30, ttl_by_content_type={"image/png": 7, "image/*": 9, "text/plain": 0})
    assert life(("Content-Type", kind), rules=rules) == expected
    assert life(("Content-Type", kind), rules=replace(rules, ttl_by_status={200: 3})) == 3


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([cc("no-store")], 30),
        ([cc("no-cache, max-age=0, must-revalidate")], 30),
        ([cc("max-age=5")], 30),
        ([("Expires", "0")], 30),
        ([("CDN-Cache-Control", "no-store")], 30),
        # It is not about time whose an answer is.
        ([cc("private")], "private"),
        ([cc("private no-store")], "private"),
        ([cc('private="x"')], 30),
        ([("Set-Cookie", "a=b")], "set-cookie"),
        ([("Vary", "*")], "vary"),
    ],
)
def test_honor_override(fields: list[Field], expected: float | str) -> None:
    assert life(*fields, rules=Rules(ttl=30, override=True, targeted=TARGETED)) == expected


def test_honor_override_shares_nothing_that_was_made_for_one() -> None:
    rules = Rules(ttl=30, override=True)
    assert life(cc("public, s-maxage=60"), authorized=True, rules=rules) == "authorization"
    assert life(cc("private"), shared=False, rules=rules) == 30
    assert life(status=404, rules=rules) == "not-fresh"


@pytest.mark.parametrize(
    ("set_cookie", "said", "shared", "expected"),
    [
        ("refuse", "max-age=60", True, "set-cookie"),
        ("refuse", "max-age=60", False, "set-cookie"),
        ("refuse", "public, max-age=60", True, "set-cookie"),
        # Unless it is left out all the same.
        ("refuse", 'max-age=60, no-cache="Set-Cookie"', True, 60),
        ("refuse", 'max-age=60, private="x, set-cookie"', True, 60),
        ("refuse", 'max-age=60, private="set-cookie"', False, "set-cookie"),
        ("strip", "max-age=60", True, 60),
        ("store", "max-age=60", True, 60),
    ],
)
def test_set_cookie(set_cookie: str, said: str, shared: bool, expected: float | str) -> None:
    rules = Rules(set_cookie=set_cookie)
    assert life(cc(said), ("set-cookie", "a=b"), shared=shared, rules=rules) == expected
    assert ("set-cookie" in left_out(parse_directives(said), rules, shared=shared)) == (
        set_cookie == "strip" or (set_cookie == "refuse" and expected == 60)
    )


@given(st.floats(0, 1), st.floats(0, 0.5), st.floats(1, 1000))
def test_jitter_shortens_a_ttl_by_its_part_at_most(chance: float, jitter: float, ttl: float) -> None:
    rules = Rules(ttl=ttl, jitter=jitter)
    assert (1 - jitter) * ttl - 1e-6 <= kept(rules=rules, chance=chance).expires - NOW <= ttl + 1e-6
    assert life(cc("max-age=60"), rules=rules, chance=chance) == 60


@pytest.mark.parametrize(
    ("fields", "until"),
    [
        ([cc("max-age=60"), ("ETag", '"a"')], 660),
        ([cc("max-age=60"), LONG_AGO], 660),
        ([cc("max-age=0"), ("ETag", '"a"')], 600),
        ([cc("max-age=60"), ("Age", "1000"), ("ETag", '"a"')], 600),
        ([("Expires", "0"), ("ETag", '"a"')], 600),
        ([cc("max-age=86000"), ("ETag", '"a"')], MAX_LIFE),
        # There is nothing to ask with.
        ([cc("max-age=60")], 60),
    ],
)
def test_keep_is_how_long_it_may_be_asked_about(fields: list[Field], until: float) -> None:
    assert kept(*fields, rules=Rules(keep=600)).kept_until == NOW + until


def test_what_nobody_dates_is_not_kept_to_be_asked_about() -> None:
    rules = Rules(keep=600, stale_while_revalidate=100, stale_if_error=100)
    assert life(("ETag", '"a"'), rules=rules) == "not-fresh"
    assert life(("ETag", '"a"'), status=403, rules=rules) == "not-fresh"


def test_early_refresh_begins_in_the_second_half_and_leaves_time_for_thirty_fetches() -> None:
    assert kept(cc("max-age=600"), rules=Rules(early=1), sent=NOW - 2).refresh_from == NOW + 540
    assert kept(cc("max-age=600"), rules=Rules(early=1), sent=NOW - 100).refresh_from == NOW + 300
    assert kept(cc("max-age=600"), rules=Rules(early=0), sent=NOW - 2).refresh_from == NOW + 600
    assert kept(cc("max-age=0"), ("ETag", '"a"'), rules=Rules(early=1, keep=60)).refresh_from == NOW


def test_what_is_there_for_once_is_over_at_once() -> None:
    once = only_once(NOW, ("a",))
    assert once.ends == NOW
    assert once.vary == ("a",)
    assert judge(once, parse_directives("max-stale"), NOW) == EXPIRED


def test_what_has_ended_is_good_for_nothing_but_a_question() -> None:
    over = ended(kept(cc("max-age=60"), ("ETag", '"a"'), rules=Rules(keep=600, stale_if_error=60)), NOW + 10)
    assert (over.refresh_from, over.expires, over.stale_until, over.error_until) == (NOW + 10,) * 4
    assert over.kept_until == NOW + 660
    assert judge(over, {}, NOW + 10) == EXPIRED


@pytest.mark.parametrize(
    ("said", "authorized", "told"),
    [("", False, True), ("", True, False), ("public", True, True), ("private", False, False), ("private", True, False)],
)
def test_who_may_be_told_of_anothers_error_where_there_is_one_copy_for_all(
    said: str, authorized: bool, told: bool
) -> None:
    fields = CIMultiDict([cc(said)])
    assert (shared_error(fields, shared=True, authorized=authorized, rules=Rules()) is not None) == told


# -- whatever comes --------------------------------------------------------------------------------

seconds = st.sampled_from(["0", "1", "60", "86400", "99999999999", "-1", "x", "", "1.5"])
directives = st.one_of(
    st.sampled_from(
        ["no-store", "no-cache", "private", "public", "must-revalidate", "proxy-revalidate", "must-understand"]
    ),
    st.sampled_from(['no-cache="set-cookie"', 'private="x"', 'private="set-cookie', "private x", "no-store no-cache"]),
    st.builds(
        "{}={}".format,
        st.sampled_from(["max-age", "s-maxage", "stale-while-revalidate", "stale-if-error"]),
        seconds,
    ),
    st.text(max_size=8),
)
controls = st.lists(directives, max_size=5).map(", ".join)
moments = st.one_of(st.integers(-(10**9), 10**9).map(at), st.sampled_from(["0", "", "x", "Sun, 09-Sep-01"]))
some_fields = st.lists(
    st.one_of(
        st.tuples(st.just("Cache-Control"), controls),
        st.tuples(st.sampled_from(TARGETED), controls),
        st.tuples(st.sampled_from(["Expires", "Date", "Last-Modified"]), moments),
        st.tuples(st.just("Age"), seconds),
        st.tuples(st.just("Vary"), st.sampled_from(["", "a, b", "*", "a,*"])),
        st.tuples(st.just("ETag"), st.sampled_from(['"a"', "a", ""])),
        st.tuples(st.just("Set-Cookie"), st.just("a=b")),
        st.tuples(st.just("Content-Type"), st.sampled_from(["a/b", "c/d", ";"])),
    ),
    max_size=7,
)
spans = st.floats(0, MAX_LIFE)
some_rules = st.builds(
    Rules,
    ttl=spans,
    ttl_by_status=st.dictionaries(st.sampled_from([200, 404, 500]), spans, max_size=2),
    ttl_by_content_type=st.dictionaries(st.sampled_from(["a/b", "a/*"]), spans, max_size=2),
    override=st.booleans(),
    jitter=st.floats(0, 0.5),
    heuristic=st.floats(0, 1),
    keep=spans,
    stale_while_revalidate=spans,
    stale_if_error=spans,
    targeted=st.sampled_from([(), TARGETED]),
    set_cookie=st.sampled_from(["refuse", "strip", "store"]),
    early=st.floats(0, 100),
)


@given(
    fields=some_fields,
    rules=some_rules,
    status=st.sampled_from([100, 200, 204, 206, 301, 304, 404, 418, 500, 999]),
    shared=st.booleans(),
    authorized=st.booleans(),
    took=st.floats(-1000, 1000),
    chance=st.floats(0, 1),
    asked=st.one_of(st.just(""), st.text(max_size=12), controls),
    later=st.floats(-1000, 2 * MAX_LIFE),
)
def test_whatever_comes_a_plan_is_sound(
    fields: list[Field],
    rules: Rules,
    status: int,
    shared: bool,
    authorized: bool,
    took: float,
    chance: float,
    asked: str,
    later: float,
) -> None:
    headers = CIMultiDict(fields)
    result = plan(
        status,
        headers,
        shared=shared,
        authorized=authorized,
        rules=rules,
        sent=NOW - took,
        received=NOW,
        chance=chance,
    )
    said = control(headers, rules).directives
    plain = parse_directives(", ".join(headers.getall("Cache-Control", ())))
    if isinstance(result, str):
        assert result in {"status", "must-understand", "no-store", "private", "set-cookie", "authorization"} | {
            "vary",
            "no-cache",
            "not-fresh",
        }
        return
    # Times.
    assert result.born <= NOW
    assert result.born <= result.expires
    assert result.refresh_from <= result.expires
    for until in (result.stale_until, result.error_until, result.kept_until):
        assert result.expires <= until <= NOW + MAX_LIFE
    assert NOW < result.ends <= NOW + MAX_LIFE
    # What is never kept.
    assert 200 <= status < 600 or status == 999
    assert status not in (206, 304, 416)
    assert "*" not in ", ".join(headers.getall("Vary", ()))
    if "no-store" in plain and "must-understand" not in plain and not rules.override and not rules.targeted:
        pytest.fail("no-store was kept")
    assert not ("no-store" in said and "must-understand" not in said)
    if shared:
        assert not ("private" in said and not names_of(said["private"]))
        if authorized:
            assert {"public", "s-maxage", "must-revalidate"} & set(said)
    if "Set-Cookie" in headers and rules.set_cookie != "store":
        assert "set-cookie" in left_out(said, rules, shared=shared)
    # What may be served.
    now = NOW + later
    verdict = judge(result, parse_directives(asked), now)
    if verdict == FRESH:
        assert now < result.expires
    wants = parse_directives(asked)
    if verdict == STALE:
        assert now < result.stale_until or ("max-stale" in wants and not result.strict)
    if "no-cache" in wants:
        assert verdict == RELOAD
    if {"must-revalidate", "proxy-revalidate"} & set(said) or ("no-cache" in said and not names_of(said["no-cache"])):
        assert verdict != STALE
        assert result.error_until == result.expires
    if "no-cache" in said and not names_of(said["no-cache"]):
        assert verdict != FRESH or now < result.born


def test_no_answer_takes_long_to_plan() -> None:
    text = 'private="' + 'a\\"' * 300_000
    fields = CIMultiDict([(name, text) for name in ("Cache-Control", *TARGETED, "Expires", "Date", "Age", "Vary")])
    started = time.process_time()
    plan(200, fields, shared=True, authorized=False, rules=Rules(ttl=5, targeted=TARGETED), sent=NOW, received=NOW)
    assert time.process_time() - started < 1
