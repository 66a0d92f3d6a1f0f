"""One id for the client, the upstream and the log."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.conftest import StartGateway
from tests.harness import UpstreamServer


def table(**keys: Any) -> dict[str, Any]:
    return {"plugins": {"request_id": keys}}


async def test_upstream_and_client_get_the_same_new_id(
    gateway: StartGateway, http: aiohttp.ClientSession, upstream: UpstreamServer
) -> None:
    nodes = [await gateway(table()) for _ in range(2)]

    async def fetch(number: int) -> str:
        async with http.get(nodes[number % 2].url, headers={"X-Request-Id": "from-outside"}) as response:
            (request_id,) = response.headers.getall("X-Request-Id")
            return request_id

    ids = await asyncio.gather(*(fetch(number) for number in range(40)))
    assert len(set(ids)) == 40
    assert "from-outside" not in ids
    assert {tuple(request.headers.getall("X-Request-Id")) for request in upstream.requests} == {(i,) for i in ids}


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (["abc-DEF_1.2"], True),
        (["a" * 128], True),
        (["a" * 129], False),
        ([""], False),
        (["two words"], False),
        (['"quoted"'], False),
        (["ü"], False),
        (["one", "two"], False),
    ],
)
async def test_a_trusted_id_is_kept_if_well_formed(
    gateway: StartGateway, http: aiohttp.ClientSession, upstream: UpstreamServer, sent: list[str], kept: bool
) -> None:
    node = await gateway(table(trust=True))
    async with http.get(node.url, headers=[("X-Request-Id", value) for value in sent]) as response:
        (request_id,) = response.headers.getall("X-Request-Id")
    assert (request_id == sent[0]) == kept
    assert request_id
    assert upstream.requests[0].headers.getall("X-Request-Id") == [request_id]


async def test_the_field_can_be_another_and_replaces_the_upstreams(
    gateway: StartGateway, http: aiohttp.ClientSession, upstream: UpstreamServer
) -> None:
    upstream.answer("/", lambda request: web.Response(headers={"x-trace": "the upstream's own"}))
    node = await gateway(table(header="X-Trace"))
    async with http.get(node.url, headers={"X_Trace": "spoofed", "x-trace": "spoofed"}) as response:
        (request_id,) = response.headers.getall("X-Trace")
        assert "X-Request-Id" not in response.headers
    assert request_id not in ("the upstream's own", "spoofed")
    assert upstream.requests[0].headers.getall("X-Trace") == [request_id]
    assert "X_Trace" not in upstream.requests[0].headers


async def test_a_refusal_further_in_has_the_id_too(gateway: StartGateway, http: aiohttp.ClientSession) -> None:
    node = await gateway({"plugins": {"request_id": {}, "rate_limit": {"limits": ["1/hour"]}}})
    for expected in (200, 429):
        async with http.get(node.url) as response:
            assert response.status == expected
            assert response.headers["X-Request-Id"]
