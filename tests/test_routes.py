"""The most specific route wins, and no spelling of a path takes one with fewer checks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import RouteTable
from gateway.plugin import Request, Response
from gateway.routes import MethodNotAllowed, Route, Routes, host_name, matched_path


async def nothing(request: Request) -> Response:
    return Response()


def routes(*tables: dict[str, Any]) -> Routes:
    made = []
    for number, table in enumerate(tables):
        validated = RouteTable.model_validate({"name": str(number), "match": table})
        made.append(Route(validated.name, validated, nothing))
    return Routes(made)


def found(table: Routes, path: str, host: str = "a.example", method: str = "GET") -> tuple[str, dict[str, str]] | None:
    result = table.find(host, path, method)
    return None if result is None else (result[0].name, dict(result[1]))


def test_exact_then_named_then_below() -> None:
    table = routes(
        {"path": "/*"}, {"path": "/users/*"}, {"path": "/users/{id}"}, {"path": "/users/me"}, {"path": "/users/*/posts"}
    )
    assert found(table, "/") == ("0", {})
    assert found(table, "/x/y") == ("0", {})
    assert found(table, "/users") == ("1", {})
    assert found(table, "/users/") == ("1", {})
    assert found(table, "/users/7/x") == ("1", {})
    assert found(table, "/users/7") == ("2", {"id": "7"})
    assert found(table, "/users/me") == ("3", {})
    assert found(table, "/users/me/posts") == ("4", {})
    assert found(table, "/users/7/posts") == ("4", {})


def test_a_literal_branch_that_leads_nowhere_does_not_hide_another() -> None:
    table = routes({"path": "/a/b/c"}, {"path": "/{x}/b/d"}, {"path": "/a/*"})
    assert found(table, "/a/b/d") == ("1", {"x": "a"})
    assert found(table, "/a/b/e") == ("2", {})
    assert found(table, "/z/b/e") is None


def test_hosts() -> None:
    table = routes({"host": "api.example"}, {"host": "*.example"}, {"host": "*.b.example", "path": "/x"}, {})
    assert found(table, "/", "api.example") == ("0", {})
    assert found(table, "/", "API.example".lower() + ":8080") == ("0", {})
    assert found(table, "/", "other.example") == ("1", {})
    assert found(table, "/x", "a.b.example") == ("2", {})
    assert found(table, "/y", "a.b.example") == ("1", {})
    assert found(table, "/", "example") == ("3", {})
    assert found(table, "/", "[::1]:80") == ("3", {})


def test_methods() -> None:
    table = routes({"path": "/a", "methods": ["get", "PUT"]}, {"path": "/a/*", "methods": ["DELETE"]})
    assert found(table, "/a", method="PUT") == ("0", {})
    assert found(table, "/a", method="HEAD") == ("0", {})
    assert found(table, "/a", method="DELETE") == ("1", {})
    with pytest.raises(MethodNotAllowed, match="DELETE, GET, PUT"):
        table.find("a", "/a", "POST")
    assert found(table, "/b", method="POST") is None


@pytest.mark.parametrize(
    "path",
    [
        "/admin/users",
        "//admin/users",
        "/admin//users",
        "/./admin/users",
        "/x/../admin/users",
        "/../admin/users",
        "/%61dmin/users",
        "/x/%2e%2e/admin/users",
        "/x/%2E./admin/users",
        "/admin/./users",
        "/\\admin/users",
        "/x\\..\\admin/users",
    ],
)
def test_every_spelling_of_a_path_takes_the_same_route(path: str) -> None:
    table = routes({"path": "/*"}, {"path": "/admin/*"})
    assert found(table, path) == ("1", {})


def test_an_encoded_slash_is_no_separator() -> None:
    assert matched_path("/a%2fb") == "/a%2Fb"


@given(st.text("/.%2eE5cfa\\A", max_size=30))
def test_matching_a_matched_path_changes_only_what_was_encoded_twice(path: str) -> None:
    once = matched_path("/" + path)
    assert once.startswith("/")
    assert "//" not in once
    assert not {".", ".."} & set(once[1:].split("/"))
    if "%25" not in path:
        assert matched_path(once) == once or "%" in once


@given(st.lists(st.sampled_from(["a", "b", "{x}", "*"]), min_size=1, max_size=4), st.data())
def test_a_route_is_found_by_each_path_it_describes(segments: list[str], data: st.DataObject) -> None:
    pattern = "/" + "/".join(segment if segment != "{x}" else f"{{x{n}}}" for n, segment in enumerate(segments))
    table = routes({"path": pattern})
    words = st.sampled_from(["a", "b", "c"])
    path = "/" + "/".join(segment if segment in ("a", "b") else data.draw(words) for segment in segments)
    assert found(table, path) is not None


def test_a_thousand_segments_end() -> None:
    assert found(routes({"path": "/*"}), "/" + "a/" * 5000) == ("0", {})


def test_host_names() -> None:
    assert host_name("a.example.:80") == "a.example"
    assert host_name("[2001:DB8::1]:80") == "[2001:db8::1]"
