"""Fields set, added and removed on the way in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from multidict import CIMultiDict

from gateway.config import Config, ConfigError
from gateway.loader import load_plugins
from tests.conftest import StartGateway
from tests.harness import UpstreamServer


def table(**keys: Any) -> dict[str, Any]:
    return {"plugins": {"headers": keys}}


async def test_on_the_request(gateway: StartGateway, http: aiohttp.ClientSession, upstream: UpstreamServer) -> None:
    node = await gateway(
        table(
            request={
                "set": {"X-Env": "production", "X-Fresh": "é"},
                "add": {"X-Tag": "gateway", "X-Other": "first"},
                "remove": ["x-internal", "X-Gone"],
            }
        )
    )
    sent = CIMultiDict([("X-Env", "dev"), ("x_env", "dev"), ("X-Tag", "a"), ("X-Tag", "b"), ("X-Internal", "1")])
    sent.extend([("X_Internal", "1"), ("X-Kept", "yes")])
    async with http.get(node.url, headers=sent) as response:
        assert response.status == 200
    got = upstream.requests[0].headers
    assert got.getall("X-Env") == ["production"]
    assert got["X-Fresh"] == "é"
    assert got.getall("X-Tag") == ["a", "b", "gateway"]
    assert got.getall("X-Other") == ["first"]
    assert got["X-Kept"] == "yes"
    assert not {"x_env", "X-Internal", "X_Internal", "X-Gone"} & set(got)


async def test_what_is_added_lets_nothing_else_in(
    gateway: StartGateway, http: aiohttp.ClientSession, upstream: UpstreamServer
) -> None:
    """`add` keeps what the client sent, but only where it would have passed anyway."""
    node = await gateway(table(request={"add": {"X-Forwarded-For": "10.9.9.9", "X-Hop": "ours"}}))
    sent = {"X-Forwarded-For": "6.6.6.6", "X-Hop": "theirs", "Connection": "keep-alive, X-Hop"}
    async with http.get(node.url, headers=sent) as response:
        assert response.status == 200
    assert sorted(upstream.requests[0].headers.getall("X-Forwarded-For")) == ["10.9.9.9", "127.0.0.1"]
    assert upstream.requests[0].headers.getall("X-Hop") == ["ours"]


async def test_on_the_answer(gateway: StartGateway, http: aiohttp.ClientSession, upstream: UpstreamServer) -> None:
    answer = CIMultiDict([("Server", "secret/1.0"), ("X-Frame-Options", "ALLOW"), ("Link", "</a>"), ("X-Kept", "yes")])
    upstream.answer("/", lambda request: web.Response(text="body", headers=answer))
    node = await gateway(
        table(
            response={
                "set": {"X-Frame-Options": "DENY", "Strict-Transport-Security": "max-age=63072000"},
                "add": {"Link": "</b>", "X-New": "1"},
                "remove": ["server", "X-Not-There"],
            }
        )
    )
    async with http.get(node.url) as response:
        assert await response.text() == "body"
    assert "Server" not in response.headers
    assert response.headers.getall("X-Frame-Options") == ["DENY"]
    assert response.headers["Strict-Transport-Security"] == "max-age=63072000"
    assert response.headers.getall("Link") == ["</a>", "</b>"]
    assert response.headers.getall("X-New") == ["1"]
    assert response.headers["X-Kept"] == "yes"


async def test_a_removed_field_can_be_added_anew(
    gateway: StartGateway, http: aiohttp.ClientSession, upstream: UpstreamServer
) -> None:
    node = await gateway(table(request={"remove": ["X-A"], "add": {"X-A": "ours"}}))
    async with http.get(node.url, headers={"X-A": "theirs"}) as response:
        assert response.status == 200
    assert upstream.requests[0].headers.getall("X-A") == ["ours"]


async def test_a_later_plugin_has_the_last_word(
    gateway: StartGateway, http: aiohttp.ClientSession, upstream: UpstreamServer
) -> None:
    first = {"use": "headers", "request": {"add": {"X-A": "1", "X-B": "1"}}}
    second = {"use": "headers", "request": {"remove": ["X-A"], "set": {"X-B": "2"}}}
    node = await gateway({"plugins": {"first": first, "second": second}})
    async with http.get(node.url) as response:
        assert response.status == 200
    assert "X-A" not in upstream.requests[0].headers
    assert upstream.requests[0].headers.getall("X-B") == ["2"]


@pytest.mark.parametrize("side", ["request", "response"])
@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        ({"set": {"Bad Name": "x"}}, "", "a header's name"),
        ({"set": {"X:Y": "x"}}, "", "a header's name"),
        ({"add": {"": "x"}}, "", "a header's name"),
        ({"set": {"X-A": "one\r\nX-B: two"}}, ".set.X-A", "line breaks"),
        ({"add": {"X-A": "nul\0"}}, ".add.X-A", "line breaks"),
        ({"set": {"X-A": " spaced "}}, ".set.X-A", "spaces around"),
        ({"set": {"X-A": 5}}, ".set.X-A", "expected a string"),
        ({"set": {"Transfer-Encoding": "chunked"}}, "", "the gateway's business"),
        ({"set": {"content_length": "0"}}, "", "the gateway's business"),
        ({"add": {"Host": "evil"}}, "", "the gateway's business"),
        ({"remove": ["Connection"]}, ".remove[0]", "the gateway's business"),
        ({"remove": ["X-A", "no way"]}, ".remove[1]", "a header's name"),
        ({"sett": {}}, ".sett", "did you mean 'set'"),
    ],
)
def test_a_wrong_table_is_explained(side: str, keys: dict[str, Any], key: str, words: str) -> None:
    config = Config.model_validate(table(**{side: keys}))
    with pytest.raises(ConfigError) as caught:
        load_plugins(config, Path.cwd())
    assert any(
        problem.key.startswith(f"plugins.headers.{side}{key}") and words in str(problem)
        for problem in caught.value.problems
    ), str(caught.value)
