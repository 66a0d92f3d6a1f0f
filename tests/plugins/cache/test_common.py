"""`scope = "auto"`: what its upstream says is for all has one copy for all; everything else stays one client's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest
from aiohttp import web

from tests.conftest import StartGateway
from tests.harness import UpstreamServer, eventually
from tests.plugins.cache.conftest import Client, Clock, Got

Say = Callable[..., None]
CACHE: dict[str, Any] = {"plugins": {"cache": {}}}


def by(name: str) -> dict[str, Any]:
    return {"headers": {"Authorization": f"Bearer {name}"}}


class Personal:
    """An upstream that tells each client who he is, and says of its answers what it is told to say."""

    def __init__(self, upstream: UpstreamServer, clock: Clock) -> None:
        self.control = "public, max-age=60"
        self.fields: dict[str, str] = {}
        self.delay = 0.0
        self.calls = 0
        self._clock = clock
        upstream.answer("/a", self._answer)

    async def _answer(self, request: web.Request) -> web.Response:
        self.calls += 1
        text = f"{request.headers.get('Authorization', 'nobody')} {self.calls}"
        if self.delay:
            await asyncio.sleep(self.delay)
        headers = {"Cache-Control": self.control, "Date": formatdate(self._clock(), usegmt=True)}
        return web.Response(text=text, headers=headers | self.fields)


@pytest.fixture
def personal(upstream: UpstreamServer, clock: Clock) -> Personal:
    return Personal(upstream, clock)


@pytest.mark.parametrize("control", ["public, max-age=60", "s-maxage=60", "public, s-maxage=60, max-age=0"])
async def test_what_is_for_all_is_fetched_once(
    gateway: StartGateway, personal: Personal, ask: Client, control: str
) -> None:
    personal.control = control
    node, other = await gateway(CACHE), await gateway(CACHE)
    await ask(node, **by("ann"))
    for place in (node, other):
        for options in (by("bob"), by("ann"), by("bob"), {}):
            got = await ask(place, **options)
            assert (got.cache, got.body) == ("HIT", b"Bearer ann 1"), options
    assert personal.calls == 1


@pytest.mark.parametrize(
    ("control", "fields"),
    [
        ("max-age=60", {}),
        ("max-age=60, must-revalidate", {}),
        ("public, private, max-age=60", {}),
        ("private, s-maxage=60", {}),
        ("public, max-age=60", {"Set-Cookie": "a=b"}),
    ],
)
async def test_what_is_not_stays_ones_own(
    gateway: StartGateway, personal: Personal, ask: Client, control: str, fields: dict[str, str]
) -> None:
    personal.control, personal.fields = control, fields
    node = await gateway({"plugins": {"cache": {"set_cookie": "store"}}})
    await ask(node)
    for name in ("ann", "bob", "ann", "bob"):
        assert (await ask(node, **by(name))).body.startswith(f"Bearer {name} ".encode())
    assert (await ask(node)).body.startswith(b"nobody ")


async def test_what_is_said_to_nobody_in_particular_is_not_said_to_those_with_credentials(
    gateway: StartGateway, personal: Personal, ask: Client
) -> None:
    """They share an address, as both may be for all: each answer tells whether it is."""
    node = await gateway(CACHE)
    await ask(node, **by("ann"))  # from now on everybody looks there first
    personal.control = "max-age=60"
    await node.worker.redis.ask("FLUSHALL")
    assert (await ask(node)).body == b"nobody 2"
    assert (await ask(node)).cache == "HIT"
    for name in ("ann", "bob"):
        seen = [(await ask(node, **by(name))).body for _ in range(3)]
        assert all(body.startswith(f"Bearer {name} ".encode()) for body in seen)
        assert seen[-1] == seen[-2], "it has a place of its own again"
    assert (await ask(node)).body == b"nobody 2"


async def test_an_answer_that_is_for_all_no_longer(
    gateway: StartGateway, personal: Personal, ask: Client, clock: Clock
) -> None:
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node, **by("ann"))
    assert (await ask(node, **by("bob"))).cache == "HIT"
    clock.pass_by(61)
    personal.control = "max-age=60"
    bodies = {name: [(await ask(node, **by(name))).body for _ in range(3)] for name in ("ann", "bob", "cid")}
    for name, seen in bodies.items():
        assert all(body.startswith(f"Bearer {name} ".encode()) for body in seen)
        assert seen[-1] == seen[-2], "it has a place of its own again"


async def test_one_fetch_for_all_users_where_that_is_known(
    gateway: StartGateway, personal: Personal, ask: Client, clock: Clock
) -> None:
    node, other = await gateway(CACHE), await gateway(CACHE)
    clock.stand(node, other)
    for place in (node, other):
        await ask(place, **by("ann"))
    clock.pass_by(200)
    personal.delay = 0.2
    got: list[Got] = await asyncio.gather(
        *(ask(place, **by(f"user{number}")) for number in range(20) for place in (node, other))
    )
    assert len({answer.body for answer in got}) == 1
    assert personal.calls == 2


async def test_one_fetch_for_one_user_where_it_is_not_known_yet(
    gateway: StartGateway, personal: Personal, ask: Client
) -> None:
    node, other = await gateway(CACHE), await gateway(CACHE)
    personal.delay = 0.2
    got = await asyncio.gather(*(ask(place, **by("ann")) for _ in range(5) for place in (node, other)))
    assert {answer.body for answer in got} == {b"Bearer ann 1"}


async def test_an_error_of_one_is_not_told_to_others(
    gateway: StartGateway, upstream: UpstreamServer, personal: Personal, ask: Client, clock: Clock
) -> None:
    node = await gateway({"plugins": {"cache": {"stale_if_error": 0}}})
    clock.stand(node)
    await ask(node, **by("ann"))
    clock.pass_by(61)

    async def refuse(request: web.Request) -> web.Response:
        await asyncio.sleep(0.1)
        return web.Response(status=500, text=request.headers["Authorization"])

    upstream.answer("/a", refuse)
    names = [f"user{number}" for number in range(10)]
    got = await asyncio.gather(*(ask(node, **by(name)) for name in names))
    assert [answer.body for answer in got] == [f"Bearer {name}".encode() for name in names]


async def test_variants_of_what_is_for_all(gateway: StartGateway, upstream: UpstreamServer, ask: Client) -> None:
    calls: list[str] = []

    def answer(request: web.Request) -> web.Response:
        calls.append(request.headers.get("Accept-Language", ""))
        headers = {"Cache-Control": "public, max-age=60", "Vary": "Accept-Language"}
        return web.Response(text=calls[-1], headers=headers)

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    for name in ("ann", "bob", "cid"):
        for language in ("de", "fr"):
            headers = {"Authorization": name, "Accept-Language": language}
            assert (await ask(node, headers=headers)).body == language.encode()
    assert calls == ["de", "fr"]


async def test_a_change_and_a_purge_reach_it(gateway: StartGateway, personal: Personal, ask: Client) -> None:
    node, other = await gateway(CACHE), await gateway(CACHE)
    for place in (node, other):
        await ask(place, **by("ann"))
    await ask(node, method="PUT", **by("bob"))

    async def seen() -> bool:
        return (await ask(other, **by("cid"))).body == b"Bearer cid 3"

    await eventually(seen)  # the other node hears of it a moment later


async def test_parts_of_what_is_for_all(gateway: StartGateway, upstream: UpstreamServer, ask: Client) -> None:
    def answer(request: web.Request) -> web.Response:
        headers = {"Cache-Control": "public, max-age=60", "ETag": '"v"', "Content-Range": "bytes 0-1/4"}
        return web.Response(status=206, body=b"ab", headers=headers)

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    for name, cache in (("ann", "MISS"), ("ann", "HIT")):
        got = await ask(node, headers={"Authorization": name, "Range": "bytes=0-1"})
        assert (got.status, got.body, got.cache) == (206, b"ab", cache)
