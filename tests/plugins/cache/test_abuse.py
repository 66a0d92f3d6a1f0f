"""What one client, or an odd upstream, could do to others: each of these once could."""

from __future__ import annotations

import asyncio
import random
import re
import time
from email.utils import formatdate
from typing import Any

import pytest
from aiohttp import web

from tests.conftest import StartGateway
from tests.harness import UpstreamServer, eventually
from tests.plugins.cache.conftest import Client, Clock

CACHE: dict[str, Any] = {"plugins": {"cache": {}}}
SMALL: dict[str, Any] = {"headers": {"Save-Data": "on"}}


def by(name: str) -> dict[str, Any]:
    return {"headers": {"Authorization": name}}


async def test_what_one_client_was_told_that_cannot_be_stored_does_not_keep_others_waiting_or_unstored_for_long(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock
) -> None:
    def answer(request: web.Request) -> web.Response:
        if "Save-Data" in request.headers:
            return web.Response(status=302, headers={"Location": "/lite"})
        return web.Response(text="full", headers={"Cache-Control": "max-age=60"})

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node, **SMALL)
    assert (await ask(node)).body == b"full"
    clock.pass_by(1.1)
    await ask(node)
    assert (await ask(node)).cache == "HIT"


async def test_a_head_is_never_stored_as_a_get_that_had_no_body(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock
) -> None:
    control = "no-store"
    upstream.answer("/a", lambda request: web.Response(text="full", headers={"Cache-Control": control}))
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node)
    clock.pass_by(2)
    control = "max-age=60"
    await ask(node, method="HEAD")
    assert [(await ask(node)).body for _ in range(2)] == [b"full", b"full"]


async def test_one_clients_redirect_leaves_the_stale_answer_that_stands_in_for_errors(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock
) -> None:
    status = 200

    def answer(request: web.Request) -> web.Response:
        if "Save-Data" in request.headers:
            return web.Response(status=302, headers={"Location": "/lite"})
        headers = {"Cache-Control": "max-age=60, stale-if-error=600", "Date": formatdate(clock(), usegmt=True)}
        return web.Response(status=status, text="full", headers=headers)

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node)
    clock.pass_by(61)
    await ask(node, **SMALL)
    status = 503
    assert (await ask(node)).status == 200


async def test_requests_do_not_queue_for_what_is_stale_when_it_comes(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client
) -> None:
    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(0.3)
        return web.Response(text="x", headers={"Cache-Control": "max-age=60", "Age": "60", "ETag": '"a"'})

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    started = time.monotonic()
    await asyncio.gather(*[ask(node) for _ in range(20)])
    assert time.monotonic() - started < 3 * 0.3, "one after the other they would take 6 s"


@pytest.mark.parametrize("more", [{"Cache-Control": "only-if-cached, no-store"}, {"If-Match": '"a"'}])
async def test_only_if_cached_never_reaches_the_upstream(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, more: dict[str, str]
) -> None:
    node = await gateway(CACHE)
    got = await ask(node, headers={"Cache-Control": "only-if-cached"} | more)
    assert got.status == 504
    assert upstream.count("/a") == 0


async def test_a_change_without_an_answer_may_have_been_made(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client
) -> None:
    version = 1

    def answer(request: web.Request) -> web.Response:
        nonlocal version
        if request.method == "POST":
            version += 1
            assert request.transport is not None
            request.transport.abort()
        return web.Response(text=str(version), headers={"Cache-Control": "max-age=60"})

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    await ask(node)
    assert (await ask(node, method="POST", data=b"x")).status == 502
    assert (await ask(node)).body == b"2"


async def test_a_stored_error_is_not_asked_about(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock
) -> None:
    """An upstream that tags its errors with the page's tag would confirm them for ever."""
    there = False

    def answer(request: web.Request) -> web.Response:
        headers = {"ETag": '"a"', "Cache-Control": "max-age=1", "Date": formatdate(clock(), usegmt=True)}
        if there and request.headers.get("If-None-Match") == '"a"':
            return web.Response(status=304, headers=headers)
        return web.Response(status=200 if there else 404, headers=headers)

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    clock.stand(node)
    assert (await ask(node)).status == 404
    there = True
    clock.pass_by(5)
    assert (await ask(node)).status == 200


async def test_one_clients_error_is_not_for_all_who_wait(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client
) -> None:
    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(0.2)
        if "X-Evil" in request.headers:
            return web.Response(status=500)
        return web.Response(text="ok", headers={"Cache-Control": "max-age=60"})

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    evil = asyncio.ensure_future(ask(node, headers={"X-Evil": "1"}))
    await eventually(lambda: upstream.count("/a") == 1)
    got = await asyncio.gather(*[ask(node) for _ in range(5)])
    assert (await evil).status == 500
    assert [answer.status for answer in got] == [200] * 5
    assert upstream.count("/a") == 2


@pytest.mark.parametrize("nodes", [1, 2])
async def test_who_waits_with_credentials_does_not_get_what_nobody_in_particular_was_told(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock, nodes: int
) -> None:
    control, delay = "public, max-age=1", 0.0

    async def answer(request: web.Request) -> web.Response:
        headers = {"Cache-Control": control, "Date": formatdate(clock(), usegmt=True)}
        who = request.headers.get("Authorization", "nobody")
        await asyncio.sleep(delay)
        return web.Response(text=who, headers=headers)

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    other = await gateway(CACHE) if nodes == 2 else node
    clock.stand(node, other)
    for place in (node, other):
        await ask(place, **by("ada"))
    clock.pass_by(500)
    control, delay = "max-age=60", 0.3
    asked = upstream.count("/a")
    first = asyncio.ensure_future(ask(node))
    await eventually(lambda: upstream.count("/a") == asked + 1)
    got = await ask(other, **by("ada"))
    assert (await first).body == b"nobody"
    assert got.body == b"ada"


async def test_what_was_one_clients_own_is_not_for_all_after_a_304(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock
) -> None:
    def answer(request: web.Request) -> web.Response:
        headers = {"ETag": '"a"', "Date": formatdate(clock(), usegmt=True)}
        if request.headers.get("If-None-Match"):
            return web.Response(status=304, headers=headers | {"Cache-Control": "public, max-age=60"})
        control = {"Cache-Control": 'max-age=1, private="X-User"', "X-User": request.headers["Authorization"]}
        return web.Response(text="same", headers=headers | control)

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node, **by("ada"))
    clock.pass_by(5)
    await ask(node, **by("ada"))
    got = await ask(node, **by("bob"))
    assert got.headers.get("X-User") != "ada"


def cookie(name: str) -> dict[str, Any]:
    return {"headers": {"Cookie": f"user={name}"}}


async def test_what_one_client_is_told_of_a_head_is_not_for_all(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock
) -> None:
    def answer(request: web.Request) -> web.Response:
        headers = {"ETag": '"a"', "Date": formatdate(clock(), usegmt=True), "Cache-Control": "public, max-age=1"}
        if request.method == "HEAD":
            headers |= {"Cache-Control": "max-age=60", "X-User": request.headers["Cookie"]}
        return web.Response(text="same", headers=headers)

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node, **cookie("ann"))
    clock.pass_by(5)
    assert (await ask(node, method="HEAD", **cookie("bob"))).headers["X-User"] == "user=bob"
    assert "X-User" not in (await ask(node)).headers


@pytest.mark.parametrize("ttl", [0, 5])
async def test_one_clients_error_is_his_own_also_where_answers_were_for_all(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock, ttl: int
) -> None:
    failing = False

    async def answer(request: web.Request) -> web.Response:
        headers = {"Date": formatdate(clock(), usegmt=True)}
        if failing:
            await asyncio.sleep(0.2)
            return web.Response(status=500, text=request.headers.get("Cookie", "nobody"), headers=headers)
        return web.Response(text="same", headers=headers | {"Cache-Control": "public, max-age=1"})

    upstream.answer("/a", answer)
    node = await gateway({"plugins": {"cache": {"ttl_by_status": {"500": ttl}}}} if ttl else CACHE)
    clock.stand(node)
    await ask(node, **cookie("ann"))
    clock.pass_by(5000)
    failing = True
    asked = upstream.count("/a")
    first = asyncio.ensure_future(ask(node, **cookie("bob")))
    await eventually(lambda: upstream.count("/a") > asked)
    assert (await ask(node)).body == b"nobody"
    assert (await first).body == b"user=bob"
    assert (await ask(node)).body == b"nobody"


@pytest.mark.parametrize("varies", [False, True])
async def test_a_holder_that_was_stopped_does_not_overwrite_what_was_fetched_meanwhile(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, monkeypatch: pytest.MonkeyPatch, varies: bool
) -> None:
    calls = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        number = calls
        if number == 1:
            await asyncio.sleep(0.8)
        headers = {"Cache-Control": "max-age=60"} | ({"Vary": "X-Kind"} if varies else {})
        return web.Response(text=str(number), headers=headers)

    upstream.answer("/a", answer)
    config = {"plugins": {"cache": {"lock_ttl": 0.2}}}
    node, other = await gateway(config), await gateway(config)
    # A process that is stopped does not extend its lock.
    monkeypatch.setattr(node.plugins["cache"]._flights, "_lock_ttl", 120)  # type: ignore[attr-defined]
    first = asyncio.ensure_future(ask(node))
    await eventually(lambda: calls == 1)
    assert (await ask(other)).body == b"2"
    assert (await first).body == b"1"
    assert [(await ask(place)).body for place in (other, node)] == [b"2", b"2"]


async def test_the_answer_to_a_slow_head_does_not_bring_back_an_old_body(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock
) -> None:
    version = "1"

    async def answer(request: web.Request) -> web.Response:
        mine = version
        if request.method == "HEAD":
            await asyncio.sleep(0.3)
        headers = {"Date": formatdate(clock(), usegmt=True), "ETag": f'"{mine}"', "Cache-Control": "max-age=60"}
        return web.Response(text=mine, headers=headers)

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node)
    clock.pass_by(61)
    head = asyncio.ensure_future(ask(node, method="HEAD"))
    await eventually(lambda: upstream.count("/a") == 2)
    version = "2"
    assert (await ask(node)).body == b"2"
    await head
    assert (await ask(node)).body == b"2"


async def test_a_search_by_post_is_not_asked_about_conditionally(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock
) -> None:
    """RFC 9110, section 13.1.2: its answer would be 412, which the client has not asked for."""

    async def answer(request: web.Request) -> web.Response:
        if "If-None-Match" in request.headers:
            return web.Response(status=412)
        headers = {"Date": formatdate(clock(), usegmt=True), "ETag": '"a"', "Cache-Control": "max-age=5"}
        return web.Response(body=await request.read(), headers=headers)

    upstream.answer("/a", answer)
    node = await gateway({"plugins": {"cache": {"methods": ["POST"]}}})
    clock.stand(node)
    for _ in range(2):
        got = await ask(node, method="POST", data=b"x")
        assert (got.status, got.body) == (200, b"x")
        clock.pass_by(6)


@pytest.mark.parametrize(
    "name",
    [
        "Api-Key",
        "Ocp-Apim-Subscription-Key",
        "X-AccessToken",
        "Client-Cert",
        "X-SSL-Client-S-DN",
        "X-Account-Id",
        "X-Consumer-Id",
    ],
)
async def test_fields_that_tell_who_asks_by_another_name(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, name: str
) -> None:
    def answer(request: web.Request) -> web.Response:
        return web.Response(text=request.headers[name], headers={"Cache-Control": "max-age=60"})

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    await ask(node, headers={name: "ann"})
    assert (await ask(node, headers={name: "bob"})).body == b"bob"


@pytest.mark.parametrize("scope", ["auto", "shared"])
async def test_a_browser_that_was_clicked_in_is_no_other_user(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, scope: str
) -> None:
    upstream.answer("/a", lambda request: web.Response(text="x", headers={"Cache-Control": "max-age=60"}))
    node = await gateway({"plugins": {"cache": {"scope": scope}}})
    await ask(node, headers={"Sec-Fetch-User": "?1"})
    assert (await ask(node)).cache == "HIT"


@pytest.mark.parametrize("status", [503, 304])
async def test_what_is_stale_of_one_client_is_not_for_all_once_answers_are(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock, status: int
) -> None:
    own = True

    async def answer(request: web.Request) -> web.Response:
        headers = {"Date": formatdate(clock(), usegmt=True), "ETag": '"a"'}
        if own:
            headers["Cache-Control"] = "max-age=1, stale-if-error=600"
            return web.Response(text=request.headers["Cookie"], headers=headers)
        await asyncio.sleep(0.2)
        if request.headers["X-Kind"] == "y" and (status == 503 or "If-None-Match" in request.headers):
            return web.Response(status=status, headers=headers | {"Cache-Control": "public, max-age=60"})
        headers |= {"ETag": '"b"', "Cache-Control": "public, max-age=60", "Vary": "X-Kind"}
        return web.Response(text="all", headers=headers)

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    clock.stand(node)
    ann = {"Cookie": "user=ann"}
    await ask(node, headers=ann)
    clock.pass_by(5)
    own = False
    one = asyncio.ensure_future(ask(node, headers=ann | {"X-Kind": "x"}))
    await eventually(lambda: upstream.count("/a") == 2)
    two = asyncio.ensure_future(ask(node, headers=ann | {"X-Kind": "y"}))
    assert (await one).body == b"all"
    await eventually(lambda: upstream.count("/a") == 3)
    others = [ask(node, headers={"X-Kind": "y"} | more) for more in ({}, {"Cookie": "user=bob"})]
    for got in await asyncio.gather(*others):
        assert b"ann" not in got.body
    await two
    assert b"ann" not in (await ask(node, headers={"X-Kind": "y"})).body


RULES: dict[str, Any] = {"plugins": {"cache": {"purge_rules": ["POST /admin/* -> all"]}}}


@pytest.mark.parametrize("status", [403, 200])
async def test_who_asks_for_a_change_and_leaves_purges_only_what_he_may_change(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, status: int
) -> None:
    leave = asyncio.Event()

    async def change(request: web.Request) -> web.Response:
        await leave.wait()
        return web.Response(status=status)

    upstream.answer("/a", lambda request: web.Response(text="x", headers={"Cache-Control": "max-age=60"}))
    upstream.answer("/admin/x", change)
    node = await gateway(RULES)
    await ask(node)
    asking = asyncio.ensure_future(ask(node, "/admin/x", "POST", data=b"x"))
    await eventually(lambda: upstream.count("/admin/x") == 1)
    asking.cancel()
    cache: Any = node.plugins["cache"]
    await eventually(lambda: cache._left == 1)
    leave.set()
    await eventually(lambda: cache._left == 0)
    assert (await ask(node)).cache == ("MISS" if status == 200 else "HIT")


async def test_half_a_request_purges_nothing(gateway: StartGateway, upstream: UpstreamServer, ask: Client) -> None:
    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(text="x", headers={"Cache-Control": "max-age=60"})

    upstream.answer("/a", answer)
    upstream.answer("/admin/x", answer)
    node = await gateway(RULES)
    await ask(node)
    cache: Any = node.plugins["cache"]
    _, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(b"POST /admin/x HTTP/1.1\r\nHost: api.test\r\nContent-Length: 10\r\n\r\nabc")
    await eventually(lambda: node.worker.server.in_flight == 1)
    writer.close()
    await eventually(lambda: node.worker.server.in_flight == 0)
    await eventually(lambda: cache._left == 0)
    assert (await ask(node)).cache == "HIT"


async def test_a_change_that_takes_long_is_not_waited_for_without_its_client(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client
) -> None:
    async def change(request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    upstream.answer("/a", lambda request: web.Response(text="x", headers={"Cache-Control": "max-age=60"}))
    upstream.answer("/admin/x", change)
    node = await gateway({"plugins": {"cache": {"wait_timeout": 0.2, **RULES["plugins"]["cache"]}}})
    await ask(node)
    asking = asyncio.ensure_future(ask(node, "/admin/x", "POST", data=b"x"))
    await eventually(lambda: upstream.count("/admin/x") == 1)
    asking.cancel()
    cache: Any = node.plugins["cache"]
    await eventually(lambda: cache._left == 1)
    await eventually(lambda: cache._left == 0)
    await asyncio.sleep(0)
    assert (await ask(node)).cache == "MISS"


class Fickle:
    """An upstream that does not know for whom its answers are, nor anything else. Each names itself in its body and in
    `X-Number`; after 304, errors and parts too."""

    def __init__(self, upstream: UpstreamServer, clock: Clock, chance: random.Random) -> None:
        self.given: list[tuple[str, bool]] = []
        """To whom, and whether it was for all."""
        self.varies = chance.random() < 0.3
        self._clock = clock
        self._chance = chance
        upstream.answer("/a", self._answer)
        upstream.answer("/b", self._answer)

    async def _answer(self, request: web.Request) -> web.Response:
        chance = self._chance
        who = request.headers.get("Authorization") or request.headers.get("Cookie", "")
        common, number = chance.random() < 0.5, len(self.given)
        self.given.append((who, common))
        headers = {"Date": formatdate(self._clock(), usegmt=True), "X-Number": str(number)}
        life = ["max-age=1", "max-age=30", "max-age=5, stale-while-revalidate=20", "max-age=1, stale-if-error=60"]
        headers["Cache-Control"] = ("public, " if common else "") + chance.choice([*life, "max-age=0", "no-cache"])
        if self.varies and chance.random() < 0.8:
            headers["Vary"] = "X-Kind"
        if chance.random() < 0.4:
            await asyncio.sleep(chance.random() * 0.02)
        if chance.random() < 0.15:
            return web.Response(status=chance.choice([500, 503, 404, 302]), text=f"E{number} ", headers=headers)
        headers["ETag"] = '"all"' if common else f'"{who}"'
        if request.headers.get("If-None-Match") == headers["ETag"] and chance.random() < 0.9:
            return web.Response(status=304, headers=headers)
        body = f"E{number} ".encode() * 30
        if request.headers.get("Range", "").startswith("bytes=0-") and "If-Range" not in request.headers:
            return web.Response(
                status=206, body=body[:9], headers=headers | {"Content-Range": f"bytes 0-8/{len(body)}"}
            )
        return web.Response(body=body, headers=headers)


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_the_upstream_says_nobody_gets_what_was_told_another_alone(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock, seed: int
) -> None:
    chance = random.Random(seed)
    fickle = Fickle(upstream, clock, chance)
    cache = {"ttl_by_status": {"500": 3}, "compress_over": chance.choice([0, 10]), "lock_ttl": 1}
    nodes = [await gateway({"plugins": {"cache": cache}}) for _ in range(2)]
    clock.stand(*nodes)

    async def one() -> None:
        who = chance.choice(["", "ann", "bob"])
        field = chance.choice(["Cookie", "Authorization"])
        headers = {field: f"{field}={who}"} if who else {}
        odd = [{"Cache-Control": value} for value in ("no-cache", "max-age=0", "max-stale=50")]
        odd += [{"Range": "bytes=0-8"}, {"If-None-Match": '"all"'}]
        asked = chance.choice([{}] * 10 + odd) | ({"X-Kind": chance.choice("xy")} if fickle.varies else {})
        method = chance.choice(["GET", "GET", "GET", "HEAD"])
        got = await ask(chance.choice(nodes), chance.choice(["/a", "/b"]), method, headers=headers | asked)
        numbers = {int(number) for number in re.findall(rb"E(\d+) ", got.body)}
        numbers |= {int(got.headers["X-Number"])} if "X-Number" in got.headers else set()
        for number in numbers:
            told, common = fickle.given[number]
            assert common or told == headers.get(field, ""), f"{got} for {headers}"

    for _ in range(50):
        if chance.random() < 0.2:
            clock.pass_by(chance.choice([0.5, 2, 7, 70]))
        else:
            await asyncio.gather(*[one() for _ in range(chance.choice([1, 1, 1, 8]))])
