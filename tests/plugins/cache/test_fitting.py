"""What of an answer one client is given (RFC 9110, sections 13.2.2, 14.2 and 15.4.5)."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.cache.entry import Entry, Part
from plugins.cache.facts import Facts
from plugins.cache.fitting import Fitted, fit, has
from plugins.cache.policy import only_once
from plugins.cache.ranges import parse

DATE = "Sun, 09 Sep 2001 01:46:40 GMT"
LATER = "Sun, 09 Sep 2001 02:46:40 GMT"
HEAD = (
    f'Date: {LATER}\r\nETag: "v1"\r\nLast-Modified: {DATE}\r\nVary: Accept\r\nCache-Control: max-age=60\r\n'
    "Content-Type: text/plain\r\nContent-Encoding: x\r\nContent-Location: /b\r\nX-Own: 1\r\n"
).encode()
BODY = b"0123456789"


def wants(ranges: str | None = None, if_range: str | None = None, **conditions: str) -> Facts:
    facts = Facts()
    facts.conditions = {name.replace("_", "-"): value for name, value in conditions.items()}
    facts.ranges = None if ranges is None else parse(f"bytes={ranges}")
    facts.if_range = if_range
    return facts


def fitted(facts: Facts, *, status: int = 200, head: bytes = HEAD, body: bytes = BODY, part: Part | None = None) -> str:
    """As status and body, or `whole`."""
    found = fit(facts, status, head, body, part)
    return "whole" if found is None else f"{found.status} {found.body.decode()}"


def names(found: Fitted | None) -> set[str]:
    assert found is not None
    listed = {line.partition(b":")[0].lower() for line in found.head.split(b"\r\n") if line}
    assert listed == set(found.names)
    return {name.decode() for name in listed}


@pytest.mark.parametrize(
    ("facts", "result"),
    [
        (wants(), "whole"),
        (wants(if_none_match='"v1"'), "304 "),
        (wants(if_none_match='"v0"'), "whole"),
        (wants("0-1"), "206 01"),
        (wants("10-"), "416 "),
        # First the conditions, then the range.
        (wants("0-1", if_none_match='"v1"'), "304 "),
        (wants("0-1", if_none_match='"v0"'), "206 01"),
        (wants("10-", if_none_match='"v1"'), "304 "),
        (wants("0-1", if_modified_since=DATE), "304 "),
        # Then `If-Range`, which names the very bytes.
        (wants("0-1", '"v1"'), "206 01"),
        (wants("0-1", '"v0"'), "whole"),
        (wants("0-1", 'W/"v1"'), "whole"),
        (wants("0-1", DATE), "206 01"),
        (wants("0-1", LATER), "whole"),
        (wants("10-", '"v0"'), "whole"),
        # It means nothing without `Range`.
        (wants(None, '"v0"', if_none_match='"v1"'), "304 "),
        (wants(None, '"v0"'), "whole"),
    ],
)
def test_13_2_2_the_order_of_conditions(facts: Facts, result: str) -> None:
    assert fitted(facts) == result


@pytest.mark.parametrize("status", [203, 204, 301, 404, 410, 500])
def test_13_2_1_conditions_and_ranges_are_for_a_200(status: int) -> None:
    """RFC 9110, sections 13.2.1 and 14.2: any other answer is given as it is."""
    assert fitted(wants("0-1", if_none_match='"v1"'), status=status) == "whole"


def test_15_4_5_a_304_has_the_fields_that_a_cache_needs_but_none_of_the_body() -> None:
    found = fit(wants(if_none_match='"v1"'), 200, HEAD, BODY)
    assert names(found) == {"date", "etag", "last-modified", "vary", "cache-control", "content-location", "x-own"}


def test_15_3_7_a_206_has_all_fields_of_the_200() -> None:
    found = fit(wants("2-3"), 200, HEAD, BODY)
    assert names(found) == names(fit(wants(if_none_match='"v1"'), 200, HEAD, BODY)) | {
        "content-type",
        "content-encoding",
        "content-range",
    }
    assert found is not None
    assert b"Content-Range: bytes 2-3/10\r\n" in found.head


def test_15_3_7_2_several_parts_take_the_place_of_the_type() -> None:
    found = fit(wants("0-0,501-501"), 200, HEAD, b"0" + b"x" * 500 + b"9")
    assert found is not None
    assert found.status == 206
    assert found.head.lower().count(b"content-type:") == 1
    assert b"Content-Type: multipart/byteranges; boundary=" in found.head
    assert "content-range" not in names(found)
    assert found.body.count(b"Content-Type: text/plain\r\n") == 2


def test_14_6_the_boundary_is_another_one_each_time() -> None:
    """Whoever writes bodies could otherwise forge parts."""
    heads = {fit(wants("0-0,400-"), 200, HEAD, b"x" * 500).head for _ in range(5)}  # type: ignore[union-attr]
    assert len(heads) == 5


def test_15_5_17_a_416_is_no_representation() -> None:
    assert names(fit(wants("10-"), 200, HEAD, BODY)) == {"content-range"}


@pytest.mark.parametrize(
    ("facts", "part", "enough", "result"),
    [
        (wants("2-3"), (2, 5, 10), True, "206 23"),
        (wants("2-5"), (2, 5, 10), True, "206 2345"),
        (wants("2-5"), (2, 5, None), True, "206 2345"),
        (wants("1-3"), (2, 5, 10), False, "whole"),
        (wants("4-6"), (2, 5, 10), False, "whole"),
        (wants("-4"), (6, 9, 10), True, "206 2345"),
        (wants("-4"), (6, 9, None), False, "whole"),
        (wants("6-"), (6, 9, None), False, "whole"),
        (wants(), (2, 5, 10), False, "whole"),
        (wants("2-3", '"v1"'), (2, 5, 10), True, "206 23"),
        (wants("2-3", '"v0"'), (2, 5, 10), False, "whole"),
    ],
)
def test_rfc_9111_3_3_a_stored_part_answers_what_it_has(facts: Facts, part: Part, enough: bool, result: str) -> None:
    entry = Entry(206, only_once(0.0, ()), HEAD, frozenset(), b"2345", part=part)
    assert has(facts, entry) is enough
    assert fitted(facts, status=206, body=b"2345", part=part) == result


def test_rfc_9111_3_3_a_whole_answer_is_no_part() -> None:
    assert not has(wants("0-1"), Entry(200, only_once(0.0, ()), HEAD, frozenset(), BODY))


def test_a_206_that_is_not_stored_is_given_as_it_came() -> None:
    """The upstream has cut it already. But who has the whole needs no part of it."""
    assert fitted(wants("2-3"), status=206, body=b"23") == "whole"
    assert fitted(wants("2-3", if_none_match='"v1"'), status=206, body=b"23") == "304 "


specs = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda ends: f"{min(ends)}-{max(ends)}"),
        st.integers(0, 30).map("{}-".format),
        st.integers(0, 30).map("-{}".format),
    ),
    min_size=1,
    max_size=4,
).map(",".join)
conditions: st.SearchStrategy[Mapping[str, str]] = st.dictionaries(
    st.sampled_from(["if_none_match", "if_modified_since"]), st.sampled_from(['"v1"', '"v0"', "*", DATE, "", "x"])
)


@given(specs, st.sampled_from([None, '"v1"', '"v0"', DATE, LATER, ""]), conditions, st.binary(max_size=25))
def test_whatever_is_asked_the_answer_is_of_the_stored_one(
    ranges: str, if_range: str | None, asked: Mapping[str, str], body: bytes
) -> None:
    found = fit(wants(ranges, if_range, **asked), 200, HEAD, body)
    if found is None:
        return
    assert found.status in (206, 304, 416)
    assert "content-length" not in names(found)
    assert len(found.head.split(b"\r\n")) - 1 == len(names(found))
    if found.status == 206 and b"multipart" not in found.head:
        said = next(line for line in found.head.split(b"\r\n") if line.startswith(b"Content-Range: bytes "))
        first, _, last = said.split()[2].partition(b"/")[0].partition(b"-")
        assert found.body == body[int(first) : int(last) + 1]
    elif found.status != 206:
        assert found.body == b""
