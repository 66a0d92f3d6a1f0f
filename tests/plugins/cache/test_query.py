"""Queries in a key: only what no server could read otherwise is left out."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from plugins.cache.query import QueryRule

IGNORING = QueryRule(("utm_*", "fbclid"))
SORTING = QueryRule(sort=True)
BOTH = QueryRule(("utm_*", "fbclid"), sort=True)

PIECES = (
    "a=1 a=2 b=1 A=3 a.b=1 a_b=2 utm_x=1 utm_x UTM_X=1 fbclid=2 fbclids=2 %61=4 = =1 c utm_x=1;a=9 %75tm_x=1"
    " utm_x[]=1 utm%5fx=1 utm_x=%26a=9 +utm_x=1"
)
pieces = st.sampled_from(["", *PIECES.split()])
lists = st.lists(pieces, max_size=5)
targets = lists.map(lambda found: "/p?" + "&".join(found))
pairs_of_lists = st.tuples(lists, st.lists(pieces, max_size=2)).flatmap(
    lambda both: st.tuples(st.just(both[0]), st.permutations([*both[0], *both[1]]))
)


@pytest.mark.parametrize(
    ("target", "simple"),
    [
        ("/p?utm_source=x&q=1&fbclid=2", "/p?q=1"),
        ("/p?utm_source=x&utm_medium", "/p"),
        ("/p?q=a%20b+c&utm_term=%C3%A4", "/p?q=a%20b+c"),
        ("/p", "/p"),
        ("/p?", "/p?"),
        ("/utm_x?q", "/utm_x?q"),
    ],
)
def test_parameters_that_do_not_count_are_left_out(target: str, simple: str) -> None:
    assert IGNORING(target) == simple


@pytest.mark.parametrize(
    "target",
    [
        "/p?utm_x=1;admin=1",  # `;` separates for some servers
        "/p?admin=1;utm_x=1&utm_y=2",
        "/p?%75tm_x=1",
        "/p?utm_x%5B%5D=1",
        "/p?utm_x[]=1",
        "/p?utm_x+=1",
        "/p?UTM_x=1",
        "/p?fbclid2=1",
        "/p?utm_x=1%26admin=1",  # a server that decodes first would find another parameter
        "/p?utm_x=1%3badmin",
        "/p?utm_x=%00",
        "/p?&utm_x=1",
        "/p?=&utm_x=1",
        "/p?q=" + "x" * 9000 + "&utm_x=1",
    ],
)
def test_what_another_server_might_read_otherwise_stays(target: str) -> None:
    assert BOTH(target) == target


def test_the_order_of_parameters_with_one_name_counts() -> None:
    assert SORTING("/p?b=1&a=2&b=0") == SORTING("/p?a=2&b=1&b=0") == "/p?a=2&b=1&b=0"
    assert SORTING("/p?b=0&a=2&b=1") != SORTING("/p?b=1&a=2&b=0")
    # PHP takes `a.b` for `a_b`, others do not mind case.
    for one, other in (("a.b=1", "a_b=2"), ("a=1", "A=2"), ("a=1", "%61=2"), ("a[b]=1", "a=2"), ("a=1", "+a=2")):
        assert SORTING(f"/p?{one}&{other}") != SORTING(f"/p?{other}&{one}")


@given(pairs_of_lists)
@example((["a=1", "utm_x=1"], ["a=1"]))
def test_two_targets_share_a_key_only_if_the_upstream_reads_the_same(both: tuple[list[str], list[str]]) -> None:
    one, other = ("/p?" + "&".join(found) for found in both)

    def read(target: str) -> list[list[tuple[str, str]]]:
        """As servers of several kinds do, without what does not count."""
        query = target.partition("?")[2]
        kinds = (query, query.replace(";", "&"), query.replace("%26", "&"))
        found = [parse_qsl(text, keep_blank_values=True) for text in kinds]
        plain = [
            [(name, value) for name, value in pairs if not name.startswith("utm_") and name != "fbclid"]
            for pairs in found
        ]
        return [sorted(pairs, key=lambda pair: pair[0].lower().replace(".", "_")) for pairs in plain]

    if BOTH(one) == BOTH(other):
        assert read(one) == read(other)


@given(targets)
def test_what_is_simple_stays_as_it_is(target: str) -> None:
    assert BOTH(BOTH(target)) == BOTH(target)
