"""What a change purges."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.cache.config import CacheConfig
from plugins.cache.keys import of_url
from plugins.cache.purge import Purge
from plugins.cache.purge_rules import PurgeRules
from tests.conftest import StartGateway
from tests.plugins.cache.conftest import Client
from tests.plugins.cache.test_tags import requested

Say = Callable[..., None]


def purged(rule: str, target: str, method: str = "PUT", **more: Any) -> list[str]:
    """What a request purges, in words."""
    return [
        name for purge in PurgeRules([rule]).after(requested(target, method=method, **more)) for name in purge.named()
    ]


@pytest.mark.parametrize(
    ("rule", "target", "expected"),
    [
        ("PUT /products/{id} -> tag product:{path.id}", "/products/7", ["tag product:7"]),
        ("POST|PUT|PATCH|DELETE /products/* \u2192 tag product:{path.2}", "/products/7/x", ["tag product:7"]),
        ("PUT /products/* -> tag product:{path.id}", "/products/7", ["tag product:route's"]),
        ("PUT /products/* -> tag all-of-them", "/products", ["tag all-of-them"]),
        ("PUT /a/*/c -> tag a", "/a/b/c", ["tag a"]),
        ("PUT /a/*/c -> tag a", "/a/c", []),
        ("PUT /* -> tag a", "/", ["tag a"]),
        ("PUT / -> tag a", "/", ["tag a"]),
        ("PUT / -> tag a", "/x", []),
        ("PUT /caf%C3%A9 -> tag a", "/caf%c3%a9", ["tag a"]),
        ("PUT /products/{id} -> tag product:{path.id}", "//x/../%70roducts/%37/", ["tag product:7"]),
        (
            "PUT /a -> url /list?of={query.q}, url /",
            "/a?q=b%26c",
            ["http://api.test/list?of=b%26c", "http://api.test/"],
        ),
        ("PUT /a/{id} -> url /b/{path.id}/c", "/a/..%2F..", ["http://api.test/b/..%2F../c"]),
        ("PUT /a -> route search, user, all", "/a", ["user ada", "route search", "everything"]),
        ("PUT /a -> tag {header.X-Tenant}", "/a", ["tag acme"]),
        ("POST /a -> tag a", "/a", []),
    ],
)
def test_rules(rule: str, target: str, expected: list[str]) -> None:
    more = {"params": {"id": "route's"}, "identity": "ada", "headers": {"X-Tenant": "acme"}}
    assert purged(rule, target, **more) == expected


def test_soft_and_hard_are_kept_apart() -> None:
    rules = PurgeRules(["PUT /a -> soft tag a, tag b", "PUT|POST /a -> soft all, soft url /b"])
    assert rules.after(requested("/a", method="PUT")) == [
        Purge(tags=("b",)),
        Purge((("api.test", "/b"),), tags=("a",), everything=True, soft=True),
    ]
    assert rules.after(requested("/a", method="GET")) == []
    assert rules.after(requested("/b", method="PUT")) == []


def test_a_user_is_each_of_an_identity() -> None:
    assert purged("PUT /a -> user", "/a", identity="&3:ada3:bob") == ["user ada", "user bob"]


@pytest.mark.parametrize("target", ["/a", "/a?q=", "/a?q=1&q=2", "/a?q=a%0Ab", "/a?q=" + "x" * 300])
def test_what_cannot_be_filled_in_is_left_out_and_told(target: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "gateway.cache"):
        assert purged("PUT /a -> tag x:{query.q}, user, tag b", target) == ["tag b"]
    assert "a target is left out: query.q" in caplog.text
    assert "speaks for nobody" in caplog.text


@given(st.text(max_size=20), st.text(max_size=20))
def test_a_value_stays_in_its_place_of_a_url(first: str, second: str) -> None:
    """Else who may change one thing could have another purged."""
    from urllib.parse import quote

    target = f"/a/{quote(first, safe='', errors='surrogatepass')}?q={quote(second, safe='', errors='surrogatepass')}"
    for name in purged("PUT /a/{id} -> url /b/{path.id}/c?d={query.q}&e", target):
        path, _, query = name.removeprefix("http://api.test").partition("?")
        assert path.count("/") == 3
        assert path.endswith("/c")
        assert query.count("&") == 1
        assert "#" not in name
        assert of_url("gateway", "api.test", path) != of_url("gateway", "api.test", "/b")


@pytest.mark.parametrize(
    ("rule", "what"),
    [
        ("PUT /a", "expected METHODS PATH -> TARGETS"),
        ("PUT /a -> tag a -> tag b", "expected METHODS PATH -> TARGETS"),
        ("/a -> tag a", "expected METHODS PATH -> TARGETS"),
        ("put /a -> tag a", "put: expected methods such as"),
        ("PUT|GET /a -> tag a", "GET: changes nothing"),
        ("PUT a -> tag a", 'a path starts with "/"'),
        ("PUT /a?b -> tag a", "has no query"),
        ("PUT /a*/b -> tag a", "neither a literal nor"),
        ("PUT /{a-b} -> tag a", "neither a literal nor"),
        ("PUT /a ->", "expected tag NAME, url /PATH, route NAME, user or all"),
        ("PUT /a -> tag a,", "expected tag NAME"),
        ("PUT /a -> soft", "expected tag NAME"),
        ("PUT /a -> tags a", "expected tag NAME"),
        ("PUT /a -> tag", "tag is followed by one name"),
        ("PUT /a -> tag a b", "tag is followed by one name"),
        ("PUT /a -> all a", "all is followed by nothing"),
        ("PUT /a -> url b", "is a path on the request's own host"),
        ("PUT /a -> route {path.1}", "a route's name has no placeholders"),
        ("PUT /a -> tag {id}", "a placeholder is {path.NAME}"),
        ("PUT /a -> tag " + "a" * 3000, "longer than 2000 characters"),
    ],
)
def test_what_is_no_rule_is_refused_with_its_text(rule: str, what: str) -> None:
    with pytest.raises(ValueError, match="rule ") as caught:
        CacheConfig(purge_rules=(rule,))
    assert what in str(caught.value)


def test_what_no_request_could_fill_in_is_refused() -> None:
    routes = {"search": "/search/{what}"}
    PurgeRules(["PUT /a/{id} -> tag {path.id}{path.what}{path.2}, route search"]).check(routes)
    with pytest.raises(ValueError, match=r"neither its path nor a route has a segment \{id\}"):
        PurgeRules(["PUT /a/* -> tag {path.id}"]).check(routes)
    with pytest.raises(ValueError, match="there is no route 'all'; known: search"):
        PurgeRules(["PUT /a/* -> route all"]).check(routes)


async def test_a_gateway_does_not_start_with_a_rule_that_can_never_purge(gateway: StartGateway) -> None:
    with pytest.raises(ValueError, match="there is no route 'typo'"):
        await gateway({"plugins": {"cache": {"purge_rules": ["PUT /* -> route typo"]}}})


async def test_only_a_change_that_succeeded_purges(gateway: StartGateway, ask: Client, say: Say) -> None:
    rules = ["PUT|DELETE /products/* -> tag product:{path.2}, soft url /products"]
    nodes = [await gateway({"plugins": {"cache": {"purge_rules": rules}}}) for _ in range(2)]
    say("/seven", Cache_Tag="product:7")
    say("/eight", Cache_Tag="product:8")
    pages = ("/seven", "/eight", "/products")
    say("/products", ETag='"1"')
    for page in pages:
        await ask(nodes[0], page)
    say("/products/7", status=409)
    await ask(nodes[1], "/products/7", method="PUT")
    assert [(await ask(nodes[0], page)).cache for page in pages] == ["HIT", "HIT", "HIT"]
    say("/products/7", status=204)
    await ask(nodes[1], "/products/7", method="DELETE")
    assert [(await ask(nodes[1], page)).cache for page in pages] == ["MISS", "HIT", "MISS"]
