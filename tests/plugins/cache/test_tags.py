"""What answers can be purged by, whatever clients send."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from gateway.plugin import Request
from plugins.cache.config import CacheConfig
from plugins.cache.entry import MAX_TAGS
from plugins.cache.tags import (
    MAX_VALUE,
    Missing,
    Template,
    Unusable,
    Values,
    parse_templates,
    segments_of,
    tags_for,
)
from tests.conftest import StartGateway
from tests.plugins.cache.conftest import Client
from tests.requests import bare_request

Say = Callable[..., None]


def requested(
    target: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | CIMultiDict[str] | None = None,
    params: Mapping[str, str] | None = None,
    identity: str | None = None,
) -> Request:
    """A request of which only the head matters."""
    return bare_request(method, target, headers or {}, host="api.test", params=params or {}, identity=identity)


@pytest.mark.parametrize(
    ("template", "target", "tag"),
    [
        ("product:{path.id}", "/products/7", "product:7"),
        ("product:{path.2}", "/products/8", "product:8"),
        ("{path.1}", "//x/../products//8", "products"),
        ("{path.2}", "/a/caf%C3%A9", "caf\u00e9"),
        ("{path.2}", "/a/%2531", "%31"),
        ("{path.2}", "/a/b%2Fc", "b/c"),
        ("q:{query.q}", "/s?p=1&q=a+b%26c", "q:a b&c"),
        ("{header.X-Tenant}:{path.2}", "/a/b", "acme:b"),
        ("plain", "/", "plain"),
    ],
)
def test_a_template_has_what_the_upstream_reads(template: str, target: str, tag: str) -> None:
    request = requested(target, headers={"x-tenant": " acme "}, params={"id": "7"})
    assert Template(template).expand(Values(request)) == tag


def test_a_routes_segment_is_decoded_once() -> None:
    assert Template("{path.id}").expand(Values(requested("/", params={"id": "a%2Fb%2541"}))) == "a/b%41"


@pytest.mark.parametrize(
    ("template", "target"),
    [("{path.id}", "/a"), ("{path.3}", "/a/b"), ("{query.q}", "/a?p=1"), ("{query.q}", "/a?q="), ("{header.X}", "/")],
)
def test_what_is_not_there_makes_no_tag(template: str, target: str) -> None:
    with pytest.raises(Missing):
        Template(template).expand(Values(requested(target)))
    assert tags_for(requested(target), CIMultiDict(), (), [Template(template)]) == ()


@pytest.mark.parametrize(
    "target", ["/a?q=1&q=2", "/a?q=x%0Aproduct:1", "/a?q=%00", f"/a?q={'x' * (MAX_VALUE + 1)}", "/a?q=1" + "&p=1" * 300]
)
def test_an_answer_that_could_not_be_purged_by_its_tag_is_not_stored(target: str) -> None:
    with pytest.raises(Unusable):
        Template("{query.q}").expand(Values(requested(target)))
    assert tags_for(requested(target), CIMultiDict(), (), [Template("{query.q}")]) is None


def test_tags_of_the_upstream_and_of_templates_count_together() -> None:
    fields = CIMultiDict({"Cache-Tag": ",".join(f"t{number}" for number in range(MAX_TAGS))})
    request = requested("/a/t0")
    assert len(tags_for(request, fields, ("Cache-Tag",), [Template("{path.2}")]) or ()) == MAX_TAGS
    assert tags_for(request, fields, ("Cache-Tag",), [Template("new:{path.2}")]) is None


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=["\\"]), min_size=1, max_size=40))
def test_any_name_comes_back_out_of_a_path(name: str) -> None:
    segments = segments_of(f"/a/{quote(name, safe='')}")
    assert segments == {".": ["a"], "..": []}.get(name, ["a", name])


@given(st.text("/.\\%2eEfF5cC41ab", max_size=30))
def test_no_path_has_segments_that_lead_elsewhere(path: str) -> None:
    assert not {"", ".", ".."} & set(segments_of(path))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "expected a name"),
        ("{path}", "placeholder is"),
        ("{cookie.a}", "placeholder is"),
        ("a}b", "placeholder is"),
        ("a b", "no spaces"),
        ("a\nb", "no control"),
        ("{path.0}", "first segment is"),
        ("{header.X-Tenant}", "X-Tenant is no part of the key"),
        ("{query.utm_source}", "utm_source is no part of the key"),
    ],
)
def test_what_is_no_template_is_refused(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        CacheConfig(tag_templates=(text,), ignore_query=("utm_*",))


def test_a_field_of_the_key_may_be_in_a_tag() -> None:
    assert CacheConfig(tag_templates=("{header.x-tenant}",), key_headers=("X-Tenant",)).tag_templates
    assert [template.text for template in parse_templates(["a", "b"])] == ["a", "b"]


async def test_an_answer_is_purged_by_a_tag_that_its_upstream_knows_nothing_of(
    gateway: StartGateway, ask: Client, say: Say
) -> None:
    for path in ("/products/7", "/products/8"):
        say(path, "max-age=60", Cache_Tag="all")
    config: dict[str, Any] = {
        "plugins": {
            "cache": {
                "tag_templates": ["product:{path.id}"],
                "purge_rules": ["PUT /stock/{id} -> tag product:{path.id}"],
            }
        },
        "routes": [{"match": {"path": "/products/{id}"}, "plugins": ["cache"]}, {"plugins": ["cache"]}],
    }
    node = await gateway(config)
    for path in ("/products/7", "/products/8"):
        await ask(node, path)
    assert (await ask(node, "/stock/%37", method="PUT")).status == 200
    assert [(await ask(node, path)).cache for path in ("/products/7", "/products/8")] == ["MISS", "HIT"]
