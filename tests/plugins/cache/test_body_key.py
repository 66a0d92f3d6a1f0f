"""Bodies as a part of the key: RFC 10008, section 2.7."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.cache.body_key import canonical, key_of

documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abAB_\x00é", max_size=2), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a":1,"b":[1,2]}', ' { "b" : [1, 2],\n"a":1 } '),
        ('{"q":"\\u00e4\\/"}', '{"q":"ä/"}'),
        ('{"a":{"x":1,"y":2}}', '{"a":{"y":2,"x":1}}'),
    ],
)
def test_one_document_has_one_key_in_all_its_spellings(one: str, other: str) -> None:
    for name in ("application/json", "Application/JSON; charset=UTF-8", "application/vnd.api+json"):
        assert key_of(one.encode(), name) == key_of(other.encode(), name)
    assert key_of(one.encode(), "text/plain") != key_of(other.encode(), "text/plain")
    assert key_of(one.encode(), None) != key_of(other.encode(), None)
    assert key_of(one.encode(), "application/json; charset=latin-1") != key_of(other.encode(), None)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "1.0"),
        ("0", "-0"),
        ("1e2", "100"),
        ("12345678901234567890123", "12345678901234567890124"),
        ("0.1", "0.10000000000000001"),
        ("1", '"1"'),
        ("1", '{"number":"1"}'),
        ("1", '"\\u00001"'),
        ("[1,2]", "[2,1]"),
        ("null", '"null"'),
        ("true", "1"),
        ('"\\ud800"', '"\\ufffd"'),
        ('"é"', '"e\\u0301"'),
        # The last of two members counts for some, the first for others; and names differ in other ways for each.
        ('{"a":1,"a":2}', '{"a":2,"a":1}'),
        ('{"a":1,"a":2}', '{"a":2}'),
        ('{"a":1,"A":2}', '{"A":2,"a":1}'),
        ('{"a_b":1,"aB":2}', '{"aB":2,"a_b":1}'),
        ('{"k":1,"\u212a":2}', '{"\u212a":2,"k":1}'),
        ('{"a":1,"\\u0061":2}', '{"\\u0061":2,"a":1}'),
        ('{"a":1,"a\\u0000b":2}', '{"a\\u0000b":2,"a":1}'),
        ("NaN", "null"),
        ("[1]", "[1]]"),
        ("[1]", "\ufeff[1]"),
        ("[" * 5000 + "]" * 5000, "[" * 5001 + "]" * 5001),
    ],
)
def test_two_documents_have_two_keys(one: str, other: str) -> None:
    assert key_of(one.encode(), "application/json") != key_of(other.encode(), "application/json")


def test_what_is_no_json_has_the_key_of_its_bytes() -> None:
    assert key_of(b'{"a":', "application/json") != key_of(b'{"a": ', "application/json")
    assert key_of(b'"\xff"', "application/json") != key_of(b'"\xfe"', "application/json")
    # And never that of a document.
    assert key_of(canonical(b"[1]"), "text/plain") != key_of(b"[1]", "application/json")


@given(documents, documents, st.booleans())
def test_a_key_tells_the_document(one: Any, other: Any, indented: bool) -> None:
    texts = json.dumps(one, sort_keys=True), json.dumps(other, indent=2 if indented else None)
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    if key_of(texts[0].encode(), "application/json") == key_of(texts[1].encode(), "application/json"):
        assert same
    elif same:
        with pytest.raises(ValueError, match=r"alike|early"):
            canonical(texts[0].encode())
