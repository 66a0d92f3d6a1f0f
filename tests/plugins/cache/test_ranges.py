"""Parts of an answer beside a naive model: what Python's slices say of the same bytes."""

from __future__ import annotations

import time
from email import message_from_bytes
from email.message import Message
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.cache.ranges import (
    CLOSE,
    MAX_RANGES,
    Slice,
    Spec,
    answer,
    combine,
    consistent,
    content_range,
    honoured,
    is_whole,
    missing,
    parse,
    part_of,
    satisfy,
)

BOUNDARY = "0123456789abcdef0123456789abcdef"
MODIFIED = "Sun, 06 Nov 1994 08:49:37 GMT"
LATER = "Sun, 06 Nov 1994 09:49:37 GMT"
NO_LIMIT = 1 << 30

numbers = st.integers(0, 700)
specs = st.lists(
    st.builds(lambda first, more: Spec(first, first + more), numbers, numbers)
    | st.builds(Spec, numbers, st.none())
    | st.builds(Spec, st.none(), numbers),
    min_size=1,
    max_size=12,
).map(tuple)
bodies = st.integers(1, 600).flatmap(lambda size: st.binary(min_size=size, max_size=size))


@st.composite
def parts(draw: st.DrawFn, whole: bytes) -> tuple[tuple[int, int, int | None], bytes]:
    """A part of these bytes, as a 206 would bring it."""
    first = draw(st.integers(0, len(whole) - 1))
    last = draw(st.integers(first, len(whole) - 1))
    return (first, last, draw(st.sampled_from([len(whole), None]))), whole[first : last + 1]


def text_of(asked: tuple[Spec, ...]) -> str:
    return "bytes=" + ", ".join(
        [f"{'' if first is None else first}-{'' if last is None else last}" for first, last in asked]
    )


def positions(asked: tuple[Spec, ...], size: int) -> set[int]:
    """What is asked for of a body with this length, the naive way."""
    found: set[int] = set()
    for first, last in asked:
        everything = range(size)
        if first is None:
            assert last is not None
            found |= set(everything[-last:] if last else ())
        else:
            found |= set(everything[first:] if last is None else everything[first : last + 1])
    return found


def covered(slices: tuple[Slice, ...]) -> list[int]:
    return [position for start, stop in slices for position in range(start, stop)]


# -- RFC 9110, section 14.1.2: Range ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes=0-499", [(0, 499)]),
        ("bytes=9500-", [(9500, None)]),
        ("bytes=-500", [(None, 500)]),
        ("bytes=-0", [(None, 0)]),
        ("bytes=0-0,-1", [(0, 0), (None, 1)]),
        ("bytes= 0-999, 4500-5499\t, -1000 ", [(0, 999), (4500, 5499), (None, 1000)]),
        ("bytes=,, 1-2,", [(1, 2)]),
        ("BYTES=1-2", [(1, 2)]),
        ("  bytes=007-8", [(7, 8)]),
        ("bytes=5-18446744073709551615", [(5, 18446744073709551615)]),
    ],
)
def test_14_1_2_ranges_that_are_understood(text: str, expected: list[tuple[int | None, int | None]]) -> None:
    found = parse(text)
    assert found is not None
    assert list(found) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=,",
        "bytes=-",
        "bytes=1",
        "bytes=a-b",
        "bytes=2-1",
        "bytes=1-2,2-1",
        "bytes=1--2",
        "bytes=--1",
        "bytes=+1-2",
        "bytes=1 -2",
        "bytes=0x1-2",
        "bytes=1-2;3-4",
        "bytes =1-2",
        "bytes: 1-2",
        "items=1-2",
        "bytes=٠-١",
        "bytes=1-2\n",
        "bytes=0-1, bytes=3-4",
        "bytes=0-" + "9" * 21,
        "bytes=" + "0" * 5000 + "-1",
    ],
)
def test_14_2_what_is_no_range_or_several_fields_is_ignored(text: str) -> None:
    assert parse(text) is None


def test_14_2_a_field_with_very_many_ranges_is_ignored() -> None:
    many = ",".join([f"{number}-{number}" for number in range(MAX_RANGES)])
    found = parse(f"bytes={many}")
    assert found is not None
    assert len(found) == MAX_RANGES
    assert parse(f"bytes={many},100-") is None


@given(specs)
def test_14_1_2_there_and_back(asked: tuple[Spec, ...]) -> None:
    assert parse(text_of(asked)) == asked


@given(st.text(max_size=60) | st.text("bytes=0123456789-, \t*/", max_size=60).map("bytes={}".format))
def test_no_text_is_too_odd(text: str) -> None:
    parse(text)
    content_range(text)
    honoured(text, text, text, text)


@pytest.mark.parametrize(
    "text",
    [
        "bytes=" + "0-0," * 250_000,
        "bytes=" + "," * 1_000_000,
        "bytes=" + " " * 1_000_000 + "x",
        "bytes=" + "1" * 1_000_000 + "-",
        "bytes=" + "-" * 1_000_000,
        "bytes " + "1" * 1_000_000 + "-2/3",
        '"' * 1_000_000,
    ],
    ids=["ranges", "commas", "spaces", "digits", "dashes", "content-range", "quotes"],
)
def test_no_text_that_others_may_send_takes_long_to_read(text: str) -> None:
    started = time.process_time()
    assert parse(text) is None
    assert content_range(text) is None
    assert not honoured(text, text, text, text)
    assert time.process_time() - started < 1


# -- RFC 9110, sections 14.1.2 and 14.2: which bytes -----------------------------------------------


@pytest.mark.parametrize(
    ("text", "size", "slices"),
    [
        ("bytes=0-499", 10000, [(0, 500)]),
        ("bytes=9500-", 10000, [(9500, 10000)]),
        ("bytes=-500", 10000, [(9500, 10000)]),
        ("bytes=-500", 10, [(0, 10)]),
        ("bytes=5-100", 10, [(5, 10)]),
        ("bytes=10-", 10, []),
        ("bytes=-0", 10, []),
        ("bytes=10-20, 3-3", 10, [(3, 4)]),
        ("bytes=0-0,-1", 10000, [(0, 1), (9999, 10000)]),
        # Out of order: the client's own.
        ("bytes=-10, 0-9", 1000, [(990, 1000), (0, 10)]),
        # Overlapping, adjacent and close ones are one, in the place of the first of them.
        ("bytes=500-700, 0-9, 600-999", 10000, [(500, 1000), (0, 10)]),
        ("bytes=600-999, 0-9, 500-700", 10000, [(500, 1000), (0, 10)]),
        ("bytes=0-9, 600-999, 500-700", 10000, [(0, 10), (500, 1000)]),
        ("bytes=0-9, 10-19", 1000, [(0, 20)]),
        (f"bytes=0-9, {10 + CLOSE}-200", 1000, [(0, 201)]),
        (f"bytes=0-9, {11 + CLOSE}-200", 1000, [(0, 10), (11 + CLOSE, 201)]),
    ],
)
def test_14_2_slices(text: str, size: int, slices: list[Slice]) -> None:
    asked = parse(text)
    assert asked is not None
    assert list(satisfy(asked, size)) == slices


@given(specs, st.integers(1, 600))
def test_14_2_all_that_was_asked_for_is_there_once_and_nothing_outside_the_body(
    asked: tuple[Spec, ...], size: int
) -> None:
    slices = satisfy(asked, size)
    sent, wanted = covered(slices), positions(asked, size)
    assert len(sent) == len(set(sent))
    assert wanted <= set(sent) <= set(range(size))
    assert all(start < stop for start, stop in slices)
    assert bool(slices) == bool(wanted)


@given(specs, st.integers(1, 600))
def test_14_2_only_short_gaps_are_sent_unasked(asked: tuple[Spec, ...], size: int) -> None:
    slices = satisfy(asked, size)
    wanted = positions(asked, size)
    run = 0
    for position in range(size):
        run = 0 if position in wanted else run + 1
        assert run <= CLOSE or position not in covered(slices)
    for start, stop in slices:
        assert {start, stop - 1} <= wanted
    ordered = sorted(slices)
    assert all(after[0] - before[1] > CLOSE for before, after in pairwise(ordered))


@given(specs, st.integers(1, 600))
def test_15_3_7_2_slices_keep_the_clients_order(asked: tuple[Spec, ...], size: int) -> None:
    slices = satisfy(asked, size)
    firsts = [
        min(number for number, spec in enumerate(asked) if positions((spec,), size) & set(range(start, stop)))
        for start, stop in slices
    ]
    assert firsts == sorted(firsts)


@given(specs)
def test_14_2_an_empty_body_is_sent_whole(asked: tuple[Spec, ...]) -> None:
    assert answer(b"", satisfy(asked, 0), 0, None, boundary=BOUNDARY) == (200, [], b"")


def test_14_2_many_overlapping_ranges_do_not_multiply_the_body() -> None:
    body = bytes(100_000)
    asked = parse("bytes=" + ",".join(["0-"] * MAX_RANGES))
    assert asked is not None
    status, _, sent = answer(body, satisfy(asked, len(body)), len(body), None, boundary=BOUNDARY)
    assert (status, len(sent)) == (206, len(body))


@given(specs, bodies, st.none() | st.just("application/vnd.a-rather-long-one+json; charset=utf-8"))
def test_14_2_no_answer_is_much_longer_than_the_body(
    asked: tuple[Spec, ...], body: bytes, content_type: str | None
) -> None:
    _, _, sent = answer(body, satisfy(asked, len(body)), len(body), content_type, boundary=BOUNDARY)
    assert len(sent) <= len(body) + 250 * (len(asked) + 1)


# -- RFC 9110, section 13.1.5: If-Range ------------------------------------------------------------


@pytest.mark.parametrize(
    ("if_range", "etag", "expected"),
    [
        (None, "", True),
        ('"a"', '"a"', True),
        (' "a"\t', '"a" ', True),
        ('"a"', '"b"', False),
        ('"a"', "", False),
        ('W/"a"', 'W/"a"', False),
        ('"a"', 'W/"a"', False),
        ('W/"a"', '"a"', False),
        ('"a", "b"', '"a", "b"', False),
        ('"a', '"a', False),
        ("", "", False),
        ("*", '"a"', False),
    ],
)
def test_13_1_5_a_tag_is_compared_strongly(if_range: str | None, etag: str, expected: bool) -> None:
    assert honoured(if_range, etag, MODIFIED, LATER) is expected


@pytest.mark.parametrize(
    ("if_range", "modified", "date", "expected"),
    [
        (MODIFIED, MODIFIED, LATER, True),
        # Section 8.8.2.2: it may have changed again in the second (and minute, by another clock) it was sent in.
        (MODIFIED, MODIFIED, MODIFIED, False),
        (MODIFIED, MODIFIED, "Sun, 06 Nov 1994 08:50:00 GMT", False),
        (MODIFIED, MODIFIED, "", False),
        # Exactly, not "since".
        (LATER, MODIFIED, LATER, False),
        (MODIFIED, LATER, "Sun, 06 Nov 1994 23:49:37 GMT", False),
        (MODIFIED, "", LATER, False),
        ("yesterday", "yesterday", LATER, False),
    ],
)
def test_13_1_5_a_date_counts_if_it_is_strong_and_the_same(
    if_range: str, modified: str, date: str, expected: bool
) -> None:
    assert honoured(if_range, '"a"', modified, date) is expected


# -- RFC 9110, section 14.4: Content-Range ---------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("bytes 42-1233/1234", (42, 1233, 1234)),
        ("bytes 42-1233/*", (42, 1233, None)),
        ("Bytes 0-0/1 ", (0, 0, 1)),
        ("bytes 5-4/10", None),
        ("bytes 0-10/10", None),
        ("bytes */10", None),
        ("bytes */*", None),
        ("bytes 0-/10", None),
        ("bytes=0-1/2", None),
        ("bytes 0-1", None),
        ("bytes 0-1/2, bytes 3-4/5", None),
        ("items 0-1/2", None),
        ("bytes -1-1/2", None),
        ("bytes 0-1/" + "9" * 19, None),
        ("bytes ٠-١/٢", None),
        ("", None),
    ],
)
def test_14_4_content_range(text: str, part: tuple[int, int, int | None] | None) -> None:
    assert content_range(text) == part


@pytest.mark.parametrize(
    ("text", "length", "expected"),
    [("bytes 0-4/10", 5, True), ("bytes 0-4/10", 4, False), ("bytes 4-9/10", 5, False), ("bytes 9-9/*", 1, True)],
)
def test_14_4_a_body_has_the_length_that_was_said(text: str, length: int, expected: bool) -> None:
    part = content_range(text)
    assert part is not None
    assert consistent(part, length) is expected


# -- RFC 9111, section 3.3: answering from what is not complete ------------------------------------


@pytest.mark.parametrize(
    ("text", "part", "slices"),
    [
        ("bytes=6-8", (4, 9, 10), [(6, 9)]),
        ("bytes=6-", (4, 9, 10), [(6, 10)]),
        ("bytes=-1", (4, 9, 10), [(9, 10)]),
        ("bytes=-5", (4, 9, 10), [(5, 10)]),
        ("bytes=-7", (4, 9, 10), None),
        ("bytes=6-99", (4, 9, 10), [(6, 10)]),
        ("bytes=3-8", (4, 9, 10), None),
        ("bytes=6-8", (4, 7, 10), None),
        ("bytes=0-1, 6-8", (4, 9, 10), None),
        # The length is known, so it is known that there is nothing: 416.
        ("bytes=10-", (4, 9, 10), []),
        # Where it is not known, nothing can be said of what has no end of its own.
        ("bytes=6-8", (4, 9, None), [(6, 9)]),
        ("bytes=4-9", (4, 9, None), [(4, 10)]),
        ("bytes=6-", (4, 9, None), None),
        ("bytes=-1", (4, 9, None), None),
        ("bytes=6-10", (4, 9, None), None),
        ("bytes=10-12", (4, 9, None), None),
        ("bytes=3-5", (4, 9, None), None),
    ],
)
def test_3_3_a_part_answers_what_it_holds(
    text: str, part: tuple[int, int, int | None], slices: list[Slice] | None
) -> None:
    asked = parse(text)
    assert asked is not None
    found = part_of(asked, *part)
    assert (None if found is None else list(found)) == slices


@given(st.data(), bodies, specs)
def test_3_3_a_part_answers_as_the_whole_would_or_not_at_all(
    data: st.DataObject, whole: bytes, asked: tuple[Spec, ...]
) -> None:
    part, body = data.draw(parts(whole))
    slices = part_of(asked, *part)
    if slices is None:
        # Never where a complete length would have been all it takes.
        held = set(range(part[0], part[1] + 1))
        assert part[2] is None or not set(covered(satisfy(asked, len(whole)))) <= held
        return
    status, fields, sent = answer(body, slices, part[2], "text/plain", boundary=BOUNDARY, first=part[0])
    known = answer(whole, satisfy(asked, len(whole)), len(whole), "text/plain", boundary=BOUNDARY)
    length = "*" if part[2] is None else str(part[2])
    assert status == known[0]
    assert fields == [(name, value.replace(f"/{len(whole)}", f"/{length}")) for name, value in known[1]]
    if len(slices) == 1 or part[2] is not None:
        assert sent == known[2]


# -- RFC 9111, sections 3.3 and 3.4: completing and combining --------------------------------------


@pytest.mark.parametrize(
    ("part", "asked"),
    [
        ((0, 4, 10), "bytes=5-"),
        ((0, 4, None), "bytes=5-"),
        ((0, 9, 10), None),
        ((1, 4, 10), None),
        ((5, 9, 10), None),
    ],
)
def test_3_3_what_completes_a_part(part: tuple[int, int, int | None], asked: str | None) -> None:
    assert missing(part) == asked


@pytest.mark.parametrize(
    ("part", "expected"), [((0, 9, 10), True), ((0, 8, 10), False), ((1, 9, 10), False), ((0, 9, None), False)]
)
def test_15_3_7_3_a_part_that_is_the_whole(part: tuple[int, int, int | None], expected: bool) -> None:
    assert is_whole(part) is expected


@given(st.data(), bodies)
def test_3_3_what_is_missing_makes_it_whole(data: st.DataObject, whole: bytes) -> None:
    size = len(whole)
    last = data.draw(st.integers(0, size - 1))
    part = (0, last, data.draw(st.sampled_from([size, None])))
    wanted = missing(part)
    if wanted is None:
        assert is_whole(part)
        return
    asked = parse(wanted)
    assert asked is not None
    slices = satisfy(asked, size)
    assert slices == (((last + 1, size),) if last + 1 < size else ())
    if slices:
        _, fields, rest = answer(whole, slices, size, None, boundary=BOUNDARY)
        found = content_range(fields[0][1])
        assert found is not None
        assert combine(part, whole[: last + 1], found, rest, NO_LIMIT) == ((0, size - 1, size), whole)


@given(st.data(), bodies)
def test_3_4_combined_parts_are_a_part_of_the_same_whole(data: st.DataObject, whole: bytes) -> None:
    old, old_body = data.draw(parts(whole))
    new, new_body = data.draw(parts(whole))
    found = combine(old, old_body, new, new_body, NO_LIMIT)
    apart = new[0] > old[1] + 1 or old[0] > new[1] + 1
    assert (found is None) == apart
    if found is not None:
        (first, last, complete), body = found
        assert (first, last) == (min(old[0], new[0]), max(old[1], new[1]))
        assert body == whole[first : last + 1]
        assert complete == (new[2] if old[2] is None else old[2])
        assert is_whole((first, last, complete)) == (body == whole and complete is not None)


@given(st.data(), bodies)
def test_3_4_parts_that_differ_in_a_byte_both_have_are_not_combined(data: st.DataObject, whole: bytes) -> None:
    old, old_body = data.draw(parts(whole))
    new, new_body = data.draw(parts(whole))
    common = range(max(old[0], new[0]), min(old[1], new[1]) + 1)
    if not common:
        return
    other = bytearray(new_body)
    other[data.draw(st.sampled_from(common)) - new[0]] ^= data.draw(st.integers(1, 255))
    assert combine(old, old_body, new, bytes(other), NO_LIMIT) is None


@pytest.mark.parametrize(
    ("old", "new", "limit"),
    [
        ((0, 4, 10), (6, 9, 10), 100),  # a gap
        ((6, 9, 10), (0, 4, 10), 100),
        ((0, 4, 10), (6, 6, 10), 100),
        ((0, 4, 10), (5, 9, 11), 100),  # another length
        ((0, 4, 5), (5, 9, None), 100),  # beyond the end
        ((0, 9, None), (0, 4, 5), 100),
        ((0, 4, 10), (5, 9, 10), 9),  # too long
    ],
)
def test_3_4_what_does_not_fit_together(
    old: tuple[int, int, int | None], new: tuple[int, int, int | None], limit: int
) -> None:
    assert combine(old, bytes(old[1] - old[0] + 1), new, bytes(new[1] - new[0] + 1), limit) is None


def test_3_4_the_limit_itself_is_allowed() -> None:
    assert combine((0, 4, 10), b"01234", (5, 9, 10), b"56789", 10) == ((0, 9, 10), b"0123456789")


def test_3_4_a_body_of_another_length_than_was_said_is_not_combined() -> None:
    assert combine((0, 4, 10), b"012345", (5, 9, 10), b"56789", 10) is None
    assert combine((0, 4, 10), b"01234", (5, 9, 10), b"5678", 10) is None


# -- RFC 9110, sections 15.3.7 and 15.5.17: the answer ---------------------------------------------


def multipart(fields: list[tuple[str, str]], body: bytes) -> list[Message]:
    """The parts of an answer as another program reads them."""
    head = "".join([f"{name}: {value}\r\n" for name, value in fields]).encode()
    message = message_from_bytes(b"MIME-Version: 1.0\r\n" + head + b"\r\n" + body)
    assert message.get_content_type() == "multipart/byteranges"
    assert not message.defects
    found = message.get_payload()
    assert isinstance(found, list)
    return [part for part in found if isinstance(part, Message)]


def test_15_3_7_1_one_part() -> None:
    assert answer(b"0123456789", ((2, 5),), 10, "text/plain", boundary=BOUNDARY) == (
        206,
        [("Content-Range", "bytes 2-4/10")],
        b"234",
    )


def test_15_3_7_1_one_part_of_a_part_without_a_known_length() -> None:
    assert answer(b"456789", ((5, 7),), None, None, boundary=BOUNDARY, first=4) == (
        206,
        [("Content-Range", "bytes 5-6/*")],
        b"56",
    )


def test_15_3_7_2_several_parts_byte_for_byte() -> None:
    status, fields, body = answer(b"0123456789", ((8, 10), (0, 1)), 10, "text/plain", boundary="XYZ")
    assert status == 206
    assert fields == [("Content-Type", "multipart/byteranges; boundary=XYZ")]
    assert body == (
        b"--XYZ\r\nContent-Type: text/plain\r\nContent-Range: bytes 8-9/10\r\n\r\n89\r\n"
        b"--XYZ\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-0/10\r\n\r\n0\r\n"
        b"--XYZ--\r\n"
    )


def test_15_3_7_2_parts_have_no_content_type_where_the_whole_has_none() -> None:
    _, _, body = answer(b"0123456789", ((8, 10), (0, 1)), 10, None, boundary="XYZ")
    assert b"Content-Type" not in body


def test_15_3_7_2_several_parts_of_a_part() -> None:
    whole = bytes(range(256))
    slices = ((100, 110), (220, 256))
    parted = answer(whole[90:], slices, 256, "text/plain", boundary=BOUNDARY, first=90)
    assert parted == answer(whole, slices, 256, "text/plain", boundary=BOUNDARY)


@given(specs, st.integers(1, 600))
def test_15_3_7_2_what_another_program_reads_of_it_is_what_was_asked_for(asked: tuple[Spec, ...], size: int) -> None:
    # Letters only: the program that reads it here changes line ends and other bytes.
    whole = bytes(97 + position % 26 for position in range(size))
    slices = satisfy(asked, size)
    status, fields, body = answer(whole, slices, size, "text/plain", boundary=BOUNDARY)
    if not slices:
        assert (status, fields, body) == (416, [("Content-Range", f"bytes */{size}")], b"")
        return
    assert status == 206
    if len(slices) == 1:
        sent = [(fields[0][1], body)]
    else:
        assert "Content-Range" not in dict(fields)
        read = multipart(fields, body)
        assert {part["Content-Type"] for part in read} == {"text/plain"}
        sent = [(part["Content-Range"], str(part.get_payload()).encode()) for part in read]
    for (said, content), (start, stop) in zip(sent, slices, strict=True):
        assert content_range(said) == (start, stop - 1, size)
        assert content == whole[start:stop]
