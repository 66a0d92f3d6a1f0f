"""Two requests that may get different answers never share a key."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from plugins.cache.keys import MAX_KNOWN_TEXT, Keys, digest, of_tag, of_url

text = st.text(st.characters(categories=("L", "N", "P", "S", "Cs")), max_size=8)
lists = st.lists(text, max_size=5)
PLAIN = {"route": "r", "scheme": "http", "host": "h", "target": "/a?b", "identity": None}
requests = st.fixed_dictionaries(
    {
        "route": text,
        "scheme": st.sampled_from(["http", "https"]),
        "host": text,
        "target": text,
        "identity": st.none() | text,
        "who": lists.map(tuple),
        "steering": lists.map(tuple),
        "more": lists.map(tuple),
    }
)


@given(lists, lists)
@example(["a", "b"], ["ab"])
@example(["1:a"], ["a"])
@example(["", "a"], ["a", ""])
@example(["\ud800"], ["\ud801"])
def test_two_lists_have_one_digest_only_if_they_are_one(one: list[str], other: list[str]) -> None:
    assert (digest(*one) == digest(*other)) == (one == other)


@given(requests, requests)
@example(
    {**PLAIN, "who": ("x",), "steering": (), "more": ()},
    {**PLAIN, "who": (), "steering": ("x",), "more": ()},
)
@example(
    {**PLAIN, "who": (), "steering": ("x",), "more": ()},
    {**PLAIN, "who": (), "steering": (), "more": ("x",)},
)
def test_two_requests_have_one_key_only_if_nothing_tells_them_apart(one: dict[str, Any], other: dict[str, Any]) -> None:
    keys = Keys("gateway", "cache")
    # The identity itself is in `who`; beside it, it only says what a purge by user reaches.
    same = all(one[name] == other[name] for name in one if name != "identity")
    assert (keys.new_address(**one).entry == keys.new_address(**other).entry) == same


@given(lists, lists, lists, lists)
def test_variants_are_told_apart(names: list[str], values: list[str], names2: list[str], values2: list[str]) -> None:
    address = Keys("gateway", "cache").address("r", "http", "h", "/", None, (), ())
    same = (names, values) == (names2, values2)
    assert (address.variant(names, values).entry == address.variant(names2, values2).entry) == same


def test_an_entry_and_its_lock_lie_in_one_slot_and_its_copies_elsewhere() -> None:
    place = Keys("gateway", "cache").address("r", "http", "h", "/", None, (), ())

    def tag(key: bytes) -> bytes:
        return key.partition(b"{")[2].partition(b"}")[0]

    assert tag(place.entry) == tag(place.lock)
    assert len({tag(place.shard(number)) for number in range(4)}) == 4
    assert place.shard(0) == place.entry


def test_two_cache_plugins_do_not_share_entries() -> None:
    request = ("r", "http", "h", "/", None, (), ())
    assert Keys("g", "one").address(*request).entry != Keys("g", "two").address(*request).entry


def test_a_url_is_purged_for_both_schemes_and_with_or_without_the_port_they_imply() -> None:
    assert of_url("g", "Example.com:443", "/a?b") == of_url("g", "example.com", "/a?b")
    assert of_url("g", "example.com:8080", "/a?b") != of_url("g", "example.com", "/a?b")
    assert of_url("g", "h", "/") != of_tag("g", "h")


def test_a_url_is_purged_however_its_host_and_its_empty_query_are_spelled() -> None:
    for host in ("example.com.", "example.com:", "example.com:080", "EXAMPLE.com.:443"):
        assert of_url("g", host, "/a?") == of_url("g", "example.com", "/a")
    assert of_url("g", "[::1]:80", "/") == of_url("g", "[::1]", "/") != of_url("g", "[::180]", "/")
    assert of_url("g", "h", "/a??") != of_url("g", "h", "/a")


def test_addresses_of_long_requests_are_not_remembered() -> None:
    keys = Keys("g", "cache")
    for number in range(50):
        keys.address("r", "http", "h", "/", None, ("cookie", f"{number}" + "x" * MAX_KNOWN_TEXT), ())
    assert len(keys) == 0
    keys.address("r", "http", "h", "/", None, ("cookie", "x"), ())
    assert len(keys) == 1
