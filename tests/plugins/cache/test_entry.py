"""What is stored survives the way; nothing else is taken for it."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.cache.entry import GENERATIONS_BYTES, VERSION, Entry, Index, Stored, Uncacheable, decode, encode
from plugins.cache.policy import Plan

times = st.floats(0, 1e11)
names = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=20)
name_lists = st.lists(names, max_size=4, unique=True).map(tuple)
texts = st.binary(max_size=30).map(lambda data: data.replace(b"\n", b"").decode("utf-8", "surrogateescape"))

entries = st.builds(
    Entry,
    st.integers(200, 599),
    st.builds(Plan, times, times, times, times, times, times, st.booleans(), name_lists),
    st.binary(max_size=100),
    st.lists(names.map(str.encode), max_size=5).map(frozenset),
    st.binary(max_size=200),
    generations=st.binary(min_size=GENERATIONS_BYTES, max_size=GENERATIONS_BYTES),
    tags=name_lists,
    reason=st.none() | texts,
    prior=texts,
    hard=st.none() | st.binary(min_size=GENERATIONS_BYTES, max_size=GENERATIONS_BYTES),
    coding=st.sampled_from(["", "gzip"]),
    part=st.none() | st.tuples(st.integers(0, 2**40), st.integers(0, 2**40), st.none() | st.integers(0, 2**40)),
    cost=st.floats(0, 1000, width=32),
)
stored = entries | st.builds(Index, name_lists, times) | st.builds(Uncacheable, times)


def content(value: Stored | None) -> dict[str, Any]:
    assert value is not None
    known = {name: getattr(value, name) for name in dir(value) if name[0] != "_"}
    return {name: one for name, one in known.items() if not callable(one)} | {"": type(value)}


@given(stored)
def test_there_and_back(value: Stored) -> None:
    assert content(decode(encode(value))) == content(value)


@given(stored, st.data())
def test_what_is_truncated_or_changed_is_not_an_entry(value: Stored, data: st.DataObject) -> None:
    whole = encode(value)
    size = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError, match="entry"):
        decode(whole[:size])
    changed = bytearray(whole)
    changed[size] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match="entry"):
        decode(bytes(changed))


@given(st.binary(max_size=200))
def test_garbage_is_not_an_entry(data: bytes) -> None:
    with pytest.raises(ValueError, match="entry"):
        decode(data)


def test_another_version_is_not_an_entry() -> None:
    whole = bytearray(encode(Index(("a",), 0.0)))
    whole[2] = VERSION + 1
    with pytest.raises(ValueError, match=f"version {VERSION + 1}"):
        decode(bytes(whole))


def test_another_type_is_not_an_entry() -> None:
    for value in (1, [], {}, True):
        with pytest.raises(ValueError, match="not a cache entry"):
            decode(value)


def test_an_absent_key_is_nothing() -> None:
    assert decode(None) is None


def test_an_unknown_kind_is_not_an_entry() -> None:
    payload = bytes(8)
    frame = b"GC" + bytes([VERSION, 9]) + zlib.crc32(payload, 9).to_bytes(4, "big")
    with pytest.raises(ValueError, match="unknown kind"):
        decode(frame + payload)


def test_a_text_too_long_for_the_format_is_refused() -> None:
    plan = Plan(0, 0, 0, 0, 0, 0, False, ())
    with pytest.raises(ValueError, match="bytes"):
        encode(Entry(200, plan, b"", frozenset(), b"", prior="x" * 70_000))
