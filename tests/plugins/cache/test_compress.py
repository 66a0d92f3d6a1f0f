"""Two representations from one stored body: whoever asks gets what he can read, and no validator means both."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import threading
import tracemalloc
import zlib

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from plugins.cache.compress import (
    INLINE,
    MAX_WAITING,
    THREADS,
    accepts_gzip,
    as_gzip,
    as_identity,
    original_etag,
    pack,
    represented,
    size_of,
    unpack,
    worth,
)
from plugins.cache.entry import Entry, fields_of
from plugins.cache.policy import Plan
from tests.harness import UpstreamServer

LIMIT = 1 << 20
JSON = "application/json"
PRODUCTS = json.dumps([{"id": number, "name": f"product {number}"} for number in range(3000)]).encode()


def fits(
    *fields: tuple[str, str], status: int = 200, size: int = 5000, threshold: int = 1000, kind: str = JSON
) -> bool:
    return worth(status, CIMultiDict([("Content-Type", kind), *fields]), size, threshold)


def head_of(*fields: tuple[str, str]) -> tuple[bytes, frozenset[bytes]]:
    return (
        "".join([f"{name}: {value}\r\n" for name, value in fields]).encode(),
        frozenset([name.lower().encode() for name, _ in fields]) | {b"age"},
    )


def gzip_fields(*fields: tuple[str, str]) -> CIMultiDict[str]:
    return fields_of(as_gzip(*head_of(*fields))[0])


def identity_fields(*fields: tuple[str, str]) -> CIMultiDict[str]:
    return fields_of(as_identity(*head_of(*fields))[0])


# -- which answers ---------------------------------------------------------------------------------


def test_off_unless_configured() -> None:
    assert not fits(threshold=0)


def test_only_bodies_from_the_threshold_on() -> None:
    assert fits(size=1000)
    assert not fits(size=999)


@pytest.mark.parametrize(
    "kind",
    [
        "text/html; charset=utf-8",
        "TEXT/Plain",
        "application/json",
        "application/problem+json",
        "application/ld+json;profile=x",
        "application/atom+xml",
        "image/svg+xml",
        "text/javascript",
        "application/javascript",
        "application/x-ndjson",
        "application/wasm",
        "application/yaml",
        "font/ttf",
    ],
)
def test_types_that_get_shorter(kind: str) -> None:
    assert fits(kind=kind)


@pytest.mark.parametrize(
    "kind", ["image/png", "video/mp4", "application/zip", "application/octet-stream", "font/woff2", "json", "", "+json"]
)
def test_types_that_do_not(kind: str) -> None:
    assert not fits(kind=kind)


def test_an_answer_of_no_type_or_two_is_left_alone() -> None:
    assert not worth(200, CIMultiDict(), 5000, 1000)
    assert not fits(("Content-Type", "text/html"))


def test_rfc_9110_8_4_what_is_coded_already_is_left_alone() -> None:
    assert not fits(("Content-Encoding", "br"))


@pytest.mark.parametrize("control", ["no-transform", "max-age=60, No-Transform", "no-transform=1"])
@pytest.mark.parametrize("name", ["Cache-Control", "CDN-Cache-Control", "my-cache-control"])
def test_rfc_9111_5_2_2_6_no_transform(name: str, control: str) -> None:
    assert not fits((name, control))


def test_rfc_9111_5_2_2_6_on_a_second_line() -> None:
    assert not fits(("Cache-Control", "max-age=60"), ("Cache-Control", "no-transform"))
    assert fits(("Cache-Control", 'max-age=60, private="no-transform"'))


def test_rfc_9110_14_4_parts_are_left_alone() -> None:
    assert not fits(status=206)
    assert not fits(("Content-Range", "bytes 0-4999/9000"))


def test_rfc_9421_what_is_signed_is_left_alone() -> None:
    assert not fits(("Signature-Input", 'a=("content-digest");keyid="b"'))


@pytest.mark.parametrize(("status", "good"), [(103, False), (204, False), (304, False), (203, True), (404, True)])
def test_statuses(status: int, good: bool) -> None:
    assert fits(status=status) is good


# -- the work --------------------------------------------------------------------------------------


@given(st.binary(max_size=60), st.integers(1, 3000))
async def test_what_is_packed_comes_back(piece: bytes, times: int) -> None:
    body = piece * times
    packed = await pack(body)
    if packed is not None:
        assert len(packed) <= len(body) * 0.9
        assert size_of(packed) == len(body)
        assert await unpack(packed, len(body)) == body
        assert gzip.decompress(packed) == body


async def test_what_does_not_get_shorter_is_not_packed() -> None:
    assert await pack(random.Random(1).randbytes(5000)) is None
    assert await pack(random.Random(1).randbytes(INLINE + 1)) is None
    assert await pack(b"short") is None
    assert await pack(b"") is None


async def test_the_same_body_gives_the_same_bytes() -> None:
    packed = await pack(PRODUCTS)
    assert packed is not None
    assert packed == await pack(PRODUCTS)
    assert packed[4:8] == bytes(4)  # no time in it: RFC 1952, section 2.3.1


@given(st.binary(max_size=200))
async def test_garbage_is_a_value_error(data: bytes) -> None:
    for body in (data, b"\x1f\x8b\x08" + data, zlib.compress(data, wbits=31) + b"x", zlib.compress(data)):
        with pytest.raises(ValueError, match="packed body"):
            await unpack(body, LIMIT)


PACKED = zlib.compress(b"all work and no play " * 20, wbits=31)


@given(st.integers(0, len(PACKED) - 1), st.integers(1, 255))
async def test_what_is_damaged_is_never_another_body(at: int, flip: int) -> None:
    with pytest.raises(ValueError, match="packed body"):
        await unpack(PACKED[:at], LIMIT)
    changed = bytearray(PACKED)
    changed[at] ^= flip
    try:
        # In the header of gzip there are bits that say nothing about the body.
        assert await unpack(bytes(changed), LIMIT) == gzip.decompress(PACKED)
    except ValueError as error:
        assert "packed body" in str(error)  # noqa: PT017


async def test_a_second_member_is_not_read() -> None:
    with pytest.raises(ValueError, match="longer than it says"):
        await unpack(PACKED + PACKED, LIMIT)


async def test_no_more_than_the_limit() -> None:
    size = len(gzip.decompress(PACKED))
    assert len(await unpack(PACKED, size)) == size
    with pytest.raises(ValueError, match=f"{size} bytes, where {size - 1} are allowed"):
        await unpack(PACKED, size - 1)


@pytest.mark.parametrize("said", [0, 10, LIMIT])
async def test_a_bomb_that_lies_about_its_length_takes_no_memory(said: int) -> None:
    bomb = zlib.compress(bytes(50 << 20), 9, 31)[:-4] + said.to_bytes(4, "little")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="packed body"):
            await unpack(bomb, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 4 * LIMIT
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("long", [True, False])
async def test_the_loop_goes_on_during_long_work(long: bool) -> None:
    body = (PRODUCTS * 10)[: 1_000_000 if long else INLINE]
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    ticking = asyncio.create_task(tick())
    packed = await pack(body)
    assert packed is not None
    assert bool(ticks) is long
    ticks = 0
    assert await unpack(packed, LIMIT) == body
    assert bool(ticks) is long
    ticking.cancel()


async def test_of_very_many_at_once_some_are_stored_as_they_are() -> None:
    packed = await asyncio.gather(*[pack(PRODUCTS) for _ in range(MAX_WAITING + 5)])
    assert sum(body is None for body in packed) == 5
    assert sum(thread.name.startswith("cache-gzip") for thread in threading.enumerate()) <= THREADS
    assert await pack(PRODUCTS) is not None


async def test_who_leaves_makes_room() -> None:
    waiting = [asyncio.create_task(pack(PRODUCTS)) for _ in range(MAX_WAITING)]
    await asyncio.sleep(0)
    assert await pack(PRODUCTS) is None
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert await pack(PRODUCTS) is not None


# -- RFC 9110, section 12.5.3 ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        (None, False),
        ("", False),
        ("gzip", True),
        ("GZip", True),
        ("x-gzip", True),
        ("gzip, deflate, br, zstd", True),
        ("compress;q=0.5, gzip;q=1.0", True),
        ("gzip;q=1.0, identity; q=0.5, *;q=0", True),
        ("gzip ; Q=0.001", True),
        ("gzip;q=0", False),
        ("gzip;q=0.000", False),
        ("x-gzip;q=0", False),
        ("*", True),
        ("*;q=0", False),
        ("*, gzip;q=0", False),
        ("*;q=0, gzip", True),
        ("br", False),
        ("identity", False),
        ("identity;q=0", False),
        ("identity;q=0, *", True),
        ("gzip;q=0.5, identity", False),
        ("gzip;q=0.5, identity;q=0.5", True),
        (", ,gzip,", True),
        # What is no weight is none that one could rely on.
        ("gzip;q=2", False),
        ("gzip;q=0.1234", False),
        ("gzip;q=-1", False),
        ("gzip;q=", False),
        ("gzip;", False),
        ("gzip;level=9", False),
        ("gzip;q=1;q=1", False),
        ("gzip, gzip;q=0", False),
        ("gzip;q=0, gzip", False),
        ("gzip;q=0, x-gzip", False),
        ("x-gzip, gzip;q=0", False),
        ("gzipped", False),
        ('"gzip"', False),
    ],
)
def test_rfc_9110_12_5_3(text: str | None, taken: bool) -> None:
    assert accepts_gzip(text) is taken


weights = st.none() | st.integers(0, 1000)


@given(
    st.dictionaries(st.sampled_from(["gzip", "identity", "*", "br", "deflate"]), weights),
    st.permutations(["gzip", "identity", "*", "br", "deflate"]),
    st.sampled_from([",", ", ", " ,\t", ",,"]),
    st.booleans(),
)
def test_rfc_9110_12_5_3_any_list(said: dict[str, int | None], order: list[str], comma: str, old: bool) -> None:
    members = []
    for name in order:
        if name in said:
            weight = said[name]
            spelled = "X-Gzip" if old and name == "gzip" else name
            members.append(spelled if weight is None else f"{spelled} ; q={weight // 1000}.{weight % 1000:03}")
    value = {name: 1000 if weight is None else weight for name, weight in said.items()}
    acceptable = value["gzip"] > 0 if "gzip" in value else value.get("*", 0) > 0
    preferred = value.get("gzip", value.get("*", 0)) >= value.get("identity", 0)
    assert accepts_gzip(comma.join(members)) is (acceptable and preferred)


@given(st.text(max_size=50))
def test_rfc_9110_12_5_3_whatever_a_client_sends_its_refusal_counts(text: str) -> None:
    assert accepts_gzip(text) in (True, False)
    assert accepts_gzip(f"{text},gzip;q=0") is False


# -- the two representations -----------------------------------------------------------------------


def test_rfc_9110_8_4_the_coding_is_named() -> None:
    head, names = as_gzip(*head_of(("Content-Type", JSON)))
    assert fields_of(head)["Content-Encoding"] == "gzip"
    assert names == {b"content-type", b"content-encoding", b"vary", b"age"}


@pytest.mark.parametrize("fields", [gzip_fields, identity_fields])
@pytest.mark.parametrize(
    ("lines", "vary"),
    [
        ([], ["Accept-Encoding"]),
        (["Origin"], ["Origin, Accept-Encoding"]),
        (["Origin,Accept-Language", "Cookie"], ["Origin, Accept-Language, Cookie, Accept-Encoding"]),
        ([""], ["Accept-Encoding"]),
        (["X-Accept-Encoding"], ["X-Accept-Encoding, Accept-Encoding"]),
        (["accept-encoding"], ["accept-encoding"]),
        (["Origin", "Accept-Encoding"], ["Origin", "Accept-Encoding"]),
        (["*"], ["*"]),
    ],
)
def test_rfc_9110_12_5_5_both_vary(fields: type, lines: list[str], vary: list[str]) -> None:
    got = fields(("Content-Type", JSON), *[("Vary", line) for line in lines], ("X-Last", "1"))
    assert got.getall("Vary") == vary
    assert got["X-Last"] == "1"


@pytest.mark.parametrize(
    ("etag", "changed"),
    [('"abc"', '"abc;gzip"'), ('W/"abc"', 'W/"abc;gzip"'), ('""', '";gzip"'), ('"a, b"', '"a, b;gzip"')],
)
def test_rfc_9110_8_8_3_3_the_tag_differs_between_codings(etag: str, changed: str) -> None:
    assert gzip_fields(("ETag", etag))["ETag"] == changed
    assert identity_fields(("ETag", etag))["ETag"] == etag
    assert original_etag(changed) == etag


@pytest.mark.parametrize("etag", ["abc", '"abc', 'abc"', 'w/"abc"', '"a"b"', ""])
def test_rfc_9110_8_8_3_what_is_no_tag_stays_with_the_identity_representation(etag: str) -> None:
    head, names = as_gzip(*head_of(("etag", etag)))
    assert "ETag" not in fields_of(head)
    assert b"etag" not in names


def test_rfc_9110_8_8_2_the_date_of_change_is_the_same() -> None:
    date = "Sun, 09 Sep 2001 01:46:40 GMT"
    assert gzip_fields(("Last-Modified", date))["Last-Modified"] == date


@pytest.mark.parametrize("name", ["Content-MD5", "content-digest", "Repr-Digest", "Digest", "Accept-Ranges"])
def test_rfc_9530_digests_and_ranges_are_of_the_identity_representation(name: str) -> None:
    head, names = as_gzip(*head_of((name, "x"), ("Content-Language", "en")))
    assert name not in fields_of(head)
    assert name.lower().encode() not in names
    assert fields_of(head)["Content-Language"] == "en"
    assert identity_fields((name, "x"))[name] == "x"


@pytest.mark.parametrize(
    ("sent", "passed"),
    [
        ('"abc"', '"abc"'),
        ("*", "*"),
        ('"a;gzip", W/"b;gzip" ,"c"', '"a", W/"b" ,"c"'),
        ('"a", ";gzip"', '"a", ""'),
        ('"a;gzip;gzip"', '"a;gzip"'),
        ('"a;gzip-x"', '"a;gzip-x"'),
        ('"a;gzip', '"a;gzip'),
        ("a;gzip", "a;gzip"),
    ],
)
def test_rfc_9110_13_1_conditions_for_the_upstream(sent: str, passed: str) -> None:
    assert original_etag(sent) == passed


tags = st.text(st.characters(min_codepoint=0x23, max_codepoint=0x7E), max_size=12)


@given(st.lists(st.tuples(st.booleans(), tags), min_size=1, max_size=4))
def test_rfc_9110_13_1_all_that_a_client_has_is_known_to_the_upstream(kept: list[tuple[bool, str]]) -> None:
    etags = [f'{"W/" if weak else ""}"{tag}"' for weak, tag in kept]
    sent = [gzip_fields(("ETag", etag))["ETag"] for etag in etags]
    assert set(sent).isdisjoint(etags) or any(tag.endswith(";gzip") for _, tag in kept)
    assert original_etag(", ".join(sent)) == ", ".join(etags)


def stored(body: bytes, coding: str) -> Entry:
    plan = Plan(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, False, ())
    head, names = head_of(("Content-Type", JSON), ("ETag", '"abc"'))
    return Entry(200, plan, head, names, body, tags=("t",), coding=coding)


async def test_one_entry_is_served_as_each_client_accepts_it() -> None:
    packed = await pack(PRODUCTS)
    assert packed is not None
    entry = stored(packed, "gzip")
    zipped, plain = [await represented(entry, LIMIT, gzip=accepted) for accepted in (True, False)]
    assert gzip.decompress(zipped.body) == plain.body == PRODUCTS
    assert [one.fields().get("Content-Encoding") for one in (zipped, plain)] == ["gzip", None]
    assert [one.fields()["ETag"] for one in (zipped, plain)] == ['"abc;gzip"', '"abc"']
    assert [one.fields()["Vary"] for one in (zipped, plain)] == ["Accept-Encoding"] * 2
    assert [one.names >= {b"vary", b"etag"} for one in (zipped, plain)] == [True, True]
    assert [(one.tags, one.plan) for one in (zipped, plain)] == [(entry.tags, entry.plan)] * 2
    assert (entry.coding, entry.fields().get("Vary"), entry.body) == ("gzip", None, packed)


async def test_what_was_not_packed_is_served_as_it_is() -> None:
    entry = stored(b"short", "")
    assert await represented(entry, LIMIT, gzip=True) is entry
    assert await represented(entry, LIMIT, gzip=False) is entry


async def test_a_damaged_entry_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="packed body"):
        await represented(stored(b"garbage", "gzip"), LIMIT, gzip=False)


async def test_a_client_reads_it(upstream: UpstreamServer) -> None:
    packed = await pack(PRODUCTS)
    assert packed is not None
    head, _ = as_gzip(*head_of(("Content-Type", JSON), ("ETag", '"abc"')))
    upstream.answer("/a", lambda request: web.Response(body=packed, headers=fields_of(head)))
    async with aiohttp.ClientSession() as browser, browser.get(upstream.url + "/a") as response:
        assert await response.read() == PRODUCTS
        assert response.headers["ETag"] == '"abc;gzip"'
