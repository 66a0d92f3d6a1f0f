"""An answer that has ended is asked about, not for (RFC 9111, sections 4.3 and 5.2.2.4)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest
import redis.asyncio
from aiohttp import web

from tests.conftest import StartGateway
from tests.harness import UpstreamServer
from tests.plugins.cache.conftest import Client, Clock

CACHE: dict[str, Any] = {"plugins": {"cache": {}}}
LONG_AGO = "Sun, 09 Sep 2001 01:46:40 GMT"


class Resource:
    """An upstream's resource with a version: it answers 304 to whoever has that one."""

    def __init__(self, upstream: UpstreamServer, clock: Clock, path: str = "/a", **fields: str) -> None:
        self.version = 1
        self.fields = {"Cache-Control": "max-age=60"} | fields
        self.only_in_304: dict[str, str] = {}
        self.delay = 0.0
        self.asked: list[tuple[str, str | None, str | None]] = []
        self._clock = clock
        upstream.answer(path, self._answer)

    @property
    def etag(self) -> str:
        return f'"v{self.version}"'

    async def _answer(self, request: web.Request) -> web.Response:
        wanted = request.headers.get("If-None-Match")
        self.asked.append((request.method, wanted, request.headers.get("If-Modified-Since")))
        if self.delay:
            await asyncio.sleep(self.delay)
        headers = {"Date": formatdate(self._clock(), usegmt=True), "ETag": self.etag} | self.fields
        if wanted == self.etag:
            return web.Response(status=304, headers=headers | self.only_in_304)
        return web.Response(text=f"version {self.version}", headers=headers)


@pytest.fixture
def resource(upstream: UpstreamServer, clock: Clock) -> Resource:
    return Resource(upstream, clock)


async def test_4_3_4_a_304_makes_the_stored_answer_fresh_on_all_nodes(
    gateway: StartGateway, resource: Resource, ask: Client, clock: Clock
) -> None:
    node, other = await gateway(CACHE), await gateway(CACHE)
    clock.stand(node, other)
    await ask(node)
    clock.pass_by(61)
    again = await ask(other)
    assert (again.status, again.body) == (200, b"version 1")
    assert again.cache == "REVALIDATED"
    assert "fwd=stale; fwd-status=304; stored" in again.why
    assert resource.asked == [("GET", None, None), ("GET", '"v1"', None)]
    clock.pass_by(59)
    assert [(await ask(place)).cache for place in (node, other)] == ["HIT", "HIT"]
    assert len(resource.asked) == 2


async def test_4_3_3_a_200_replaces_what_was_stored(
    gateway: StartGateway, resource: Resource, ask: Client, clock: Clock
) -> None:
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node)
    clock.pass_by(61)
    resource.version = 2
    assert (await ask(node)).body == b"version 2"
    assert (await ask(node)).cache == "HIT"
    assert resource.asked[1] == ("GET", '"v1"', None)


async def test_3_2_a_304_brings_the_header_up_to_date_but_not_what_describes_the_body(
    gateway: StartGateway, resource: Resource, ask: Client, clock: Clock
) -> None:
    resource.fields |= {"X-Own": "old", "X-Stays": "yes"}
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node)
    clock.pass_by(61)
    del resource.fields["X-Stays"]
    resource.fields |= {"X-Own": "new", "Cache-Control": "max-age=600"}
    resource.only_in_304 = {"Content-MD5": "bm90aGluZw=="}
    for _ in range(2):
        got = await ask(node)
        assert (got.headers["X-Own"], got.headers["X-Stays"]) == ("new", "yes")
        assert "Content-MD5" not in got.headers
        assert got.headers["Content-Length"] == "9"
        clock.pass_by(599)
    assert len(resource.asked) == 2


async def test_4_3_4_a_304_about_another_answer_is_not_believed(
    gateway: StartGateway, resource: Resource, ask: Client, clock: Clock
) -> None:
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node)
    clock.pass_by(61)
    resource.only_in_304 = {"ETag": '"other"'}
    again = await ask(node)
    assert (again.status, again.body) == (200, b"version 1")
    assert [wanted for _, wanted, _ in resource.asked] == [None, '"v1"', None]


async def test_last_modified_will_do(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock
) -> None:
    seen: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers.get("If-Modified-Since"))
        headers = {"Cache-Control": "max-age=1", "Last-Modified": LONG_AGO}
        return web.Response(status=304 if seen[-1] else 200, text=None if seen[-1] else "old", headers=headers)

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node)
    clock.pass_by(5)
    assert (await ask(node)).body == b"old"
    assert seen == [None, LONG_AGO]


async def test_the_clients_own_condition_stays_its_own(
    gateway: StartGateway, resource: Resource, ask: Client, clock: Clock
) -> None:
    """What is stored is whole, whatever the client who had it fetched has already."""
    node = await gateway(CACHE)
    clock.stand(node)
    first = await ask(node, headers={"If-None-Match": '"v1"'})
    assert (first.status, first.body) == (304, b"")
    assert (await ask(node)).body == b"version 1"
    clock.pass_by(61)
    assert (await ask(node, headers={"If-None-Match": '"v1", "v0"'})).status == 304
    assert (await ask(node, headers={"If-None-Match": '"v0"'})).status == 200
    assert [wanted for _, wanted, _ in resource.asked] == [None, '"v1"']


@pytest.mark.parametrize("control", ["no-cache", "max-age=0", "no-cache, max-age=600", "max-age=0, must-revalidate"])
async def test_5_2_2_4_what_must_be_asked_about_each_time_is_kept_for_that(
    gateway: StartGateway, resource: Resource, ask: Client, control: str
) -> None:
    resource.fields["Cache-Control"] = control
    node = await gateway(CACHE)
    for _ in range(3):
        assert (await ask(node)).body == b"version 1"
    resource.version = 2
    assert (await ask(node)).body == b"version 2"
    assert [wanted for _, wanted, _ in resource.asked] == [None, '"v1"', '"v1"', '"v1"']
    assert (await ask(node, headers={"Cache-Control": "only-if-cached"})).status == 504


async def test_no_request_waits_for_another_where_each_must_ask(
    gateway: StartGateway, resource: Resource, ask: Client
) -> None:
    """A change that was made before a request came is seen by it: it never gets what an earlier one has fetched."""
    resource.fields["Cache-Control"] = "no-cache"
    node = await gateway(CACHE)
    await ask(node)
    resource.delay = 0.2
    early = asyncio.ensure_future(ask(node))
    while len(resource.asked) < 2:
        await asyncio.sleep(0.01)
    resource.version, resource.delay = 2, 0.0
    assert (await ask(node)).body == b"version 2"
    await early


async def test_what_ends_without_a_validator_is_fetched_whole(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Callable[..., None], clock: Clock
) -> None:
    say("/a", "max-age=60")
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node)
    clock.pass_by(61)
    assert (await ask(node)).body == b"/a 2"
    assert not {"If-None-Match", "If-Modified-Since"} & set(upstream.requests[-1].headers)


async def test_it_is_kept_for_so_long_and_no_longer(
    gateway: StartGateway, resource: Resource, ask: Client, redis_client: redis.asyncio.Redis
) -> None:
    node = await gateway({"plugins": {"cache": {"keep": "10s", "stale_if_error": 0}}})
    await ask(node)
    (key,) = [key async for key in redis_client.scan_iter("gateway:cache:*")]
    assert 60_000 < await redis_client.pttl(key) <= 70_000


async def test_an_answer_that_may_not_be_stored_any_more_is_given_once(
    gateway: StartGateway, resource: Resource, ask: Client, clock: Clock
) -> None:
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node)
    clock.pass_by(61)
    resource.fields["Cache-Control"] = "no-store"
    for _ in range(2):
        got = await ask(node)
        assert (got.status, got.body) == (200, b"version 1")
        assert "stored" not in got.why
    assert [wanted for _, wanted, _ in resource.asked] == [None, '"v1"', None]


async def test_a_clients_reload_is_a_revalidation_too(gateway: StartGateway, resource: Resource, ask: Client) -> None:
    node = await gateway(CACHE)
    await ask(node)
    again = await ask(node, headers={"Cache-Control": "no-cache"})
    assert "fwd=request; fwd-status=304" in again.why
    assert again.body == b"version 1"
    assert resource.asked[1] == ("GET", '"v1"', None)


async def test_4_3_5_a_head_that_agrees_brings_the_header_up_to_date(
    gateway: StartGateway, resource: Resource, ask: Client, clock: Clock
) -> None:
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node)
    clock.pass_by(61)
    resource.fields["X-Own"] = "new"
    await ask(node, method="HEAD")
    got = await ask(node)
    assert (got.cache, got.body, got.headers["X-Own"]) == ("HIT", b"version 1", "new")
    assert [method for method, *_ in resource.asked] == ["GET", "HEAD"]


async def test_4_3_5_a_head_that_does_not_agree_ends_what_is_stored(
    gateway: StartGateway, resource: Resource, ask: Client
) -> None:
    node = await gateway(CACHE)
    await ask(node)
    resource.version = 2
    assert (await ask(node)).body == b"version 1"
    await ask(node, method="HEAD", headers={"Cache-Control": "no-cache"})
    assert (await ask(node)).body == b"version 2"


async def test_rfc_5861_an_error_in_place_of_a_304_leaves_the_stale_answer(
    gateway: StartGateway, upstream: UpstreamServer, resource: Resource, ask: Client, clock: Clock
) -> None:
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node)
    clock.pass_by(61)
    upstream.answer("/a", lambda request: web.Response(status=503))
    stale = await ask(node)
    assert (stale.status, stale.cache, stale.body) == (200, "STALE", b"version 1")
    clock.pass_by(60)
    assert (await ask(node)).status == 503


@pytest.mark.parametrize("control", ["max-age=60, must-revalidate", "max-age=60, proxy-revalidate", "s-maxage=60"])
async def test_4_2_4_no_stale_answer_where_the_upstream_forbids_it(
    gateway: StartGateway, upstream: UpstreamServer, resource: Resource, ask: Client, clock: Clock, control: str
) -> None:
    resource.fields["Cache-Control"] = control
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node)
    clock.pass_by(61)
    upstream.answer("/a", lambda request: web.Response(status=503))
    assert (await ask(node)).status == 503


async def test_a_stored_error_is_not_served_in_place_of_an_error(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Callable[..., None], clock: Clock
) -> None:
    say("/a", "max-age=60", status=500)
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node)
    assert (await ask(node)).cache == "HIT"
    clock.pass_by(61)
    assert (await ask(node)).body == b"/a 2"
