"""What of a request is a part of the key, and what is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from plugins.cache.keys import Keys
from plugins.cache.target import Commons, Target, Targets
from tests.conftest import StartGateway
from tests.harness import Gateway, UpstreamServer, eventually, raw_exchange
from tests.plugins.cache.conftest import Client, Clock
from tests.requests import bare_request

Say = Callable[..., None]


async def whole(request: web.Request) -> web.Response:
    """Answers with all it was asked."""
    text = f"{request.method} {request.raw_path} {(await request.read()).decode()} {request.headers.get('X-Plan', '-')}"
    return web.Response(text=text, headers={"Cache-Control": "max-age=60"})


# -- the query -------------------------------------------------------------------------------------


async def test_parameters_that_do_not_count_reach_the_upstream_but_not_the_key(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client
) -> None:
    upstream.answer("/a", whole)
    node = await gateway({"plugins": {"cache": {"ignore_query": ["utm_*", "fbclid"], "sort_query": True}}})
    assert b"GET /a?utm_source=x&b=1&a=2 " in (await ask(node, "/a?utm_source=x&b=1&a=2")).body
    for same in ("/a?b=1&a=2", "/a?a=2&fbclid=1&b=1"):
        assert (await ask(node, same)).cache == "HIT"
    for other in ("/a?a=2&b=1;utm_x=1", "/a?a=2&b=1&utm_x=%26c", "/a?a=2&b=2"):
        assert (await ask(node, other)).cache == "MISS"


@pytest.mark.parametrize("spelling", ["/a?q=1&utm_source=x", "/a?utm_source=other&q=1", "/a?q=1"])
async def test_a_purge_of_any_spelling_reaches_all_of_them(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, spelling: str
) -> None:
    upstream.answer("/a", whole)
    config = {"plugins": {"cache": {"ignore_query": ["utm_*"], "purge_from": ["127.0.0.1"]}}}
    nodes = [await gateway(config) for _ in range(2)]
    for method in ("PURGE", "DELETE"):
        await ask(nodes[0], "/a?q=1&utm_source=x")
        assert (await ask(nodes[0], "/a?q=1")).cache == "HIT"
        assert (await ask(nodes[0], spelling, method)).status == 200
        assert (await ask(nodes[0], "/a?q=1")).cache == "MISS"


async def test_another_rule_for_the_query_does_not_find_what_was_stored_under_the_first(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client
) -> None:
    upstream.answer("/a", whole)
    await ask(await gateway({"plugins": {"cache": {"ignore_query": ["lang"]}}}), "/a?lang=de")
    assert b"GET /a " in (await ask(await gateway({"plugins": {"cache": {}}}), "/a")).body


# -- fields and cookies ----------------------------------------------------------------------------


async def test_values_of_fields_and_cookies_are_a_part_of_the_key(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say
) -> None:
    say("/a")
    cache = {"key_headers": ["X-Country"], "key_cookies": ["plan"], "credentials": []}
    node = await gateway({"plugins": {"cache": cache}})
    bodies = set()
    for headers in (
        {},
        {"X-Country": ""},
        {"X-Country": "DE"},
        {"X-Country": "FR"},
        {"Cookie": "plan=gold"},
        {"Cookie": "plan="},
        {"X-Country": "DE", "Cookie": "plan=gold"},
    ):
        bodies.add((await ask(node, headers=headers)).body)
        again = {**headers, "Cookie": f"theme=dark; {headers['Cookie']}"} if "Cookie" in headers else headers
        assert (await ask(node, headers={**again, "X-Other": "1"})).cache == "HIT"
    assert len(bodies) == 7


async def test_a_cookie_in_the_key_is_a_credential_all_the_same(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say
) -> None:
    say("/a")
    node = await gateway({"plugins": {"cache": {"key_cookies": ["plan"]}}})
    await ask(node, headers={"Cookie": "plan=gold; id=ada"})
    assert (await ask(node, headers={"Cookie": "plan=gold; id=bob"})).cache == "MISS"


async def test_a_field_that_a_plugin_writes_counts_as_it_was_written(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, tmp_path: Any
) -> None:
    """One copy for each plan, whoever has it; and nobody gets into another by sending the field himself."""
    (tmp_path / "plans.py").write_text(
        "from gateway.plugin import Plugin\n"
        "class Plans(Plugin):\n"
        "    def check(self, request, reply):\n"
        "        request.set_header('X-Plan', request.headers['X-Who'][:4])\n"
    )
    upstream.answer("/a", whole)
    plugins = {"plans": {"use": "plans:Plans"}, "cache": {"key_headers": ["X-Plan"]}}
    node = await gateway({"plugins": plugins}, folder=tmp_path)
    seen = []
    for who in ("gold ada", "free bob", "gold eve", "free ann"):
        got = await ask(node, headers={"X-Who": who, "X-Plan": "gold"})
        assert got.body.decode().endswith(who[:4])
        seen.append(got.cache)
    assert seen == ["MISS", "MISS", "HIT", "HIT"]


async def test_a_field_that_the_gateway_writes_cannot_be_a_part_of_the_key(gateway: StartGateway) -> None:
    with pytest.raises(Exception, match="written by the gateway"):
        await gateway({"plugins": {"cache": {"key_headers": ["X-Forwarded-For"]}}})


# -- bodies ----------------------------------------------------------------------------------------


@pytest.fixture
async def searching(gateway: StartGateway, upstream: UpstreamServer) -> Gateway:
    upstream.answer("/search", whole)
    return await gateway({"plugins": {"cache": {"methods": ["POST", "QUERY"], "max_key_body": 1000, "ttl": 60}}})


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("method", ["POST", "QUERY"])
async def test_a_search_is_cached_by_its_body(
    searching: Gateway, upstream: UpstreamServer, ask: Client, method: str
) -> None:
    async def find(body: Any, **headers: str) -> Any:
        return await ask(searching, "/search", method, data=body, headers={**JSON, **headers})

    first = await find(b'{"q":"a","n":1}')
    assert (first.cache, first.body.decode()) == ("MISS", f'{method} /search {{"q":"a","n":1}} -')
    for same in (b'{"n":1, "q":"\\u0061"}', b' {"q":"a","n":1}\n'):
        assert (await find(same)).cache == "HIT"
    for other in (b'{"q":"a","n":1.0}', b'{"q":"b","n":1}', b"[]", b"", b'{"q":"a","n":1}x'):
        got = await find(other)
        assert got.cache == "MISS"
        assert got.body.decode() == f"{method} /search {other.decode()} -"
    for field in ({"Content-Type": "text/plain"}, {"Content-Language": "de"}, {"Content-Encoding": "x"}):
        assert (await find(b'{"q":"a","n":1}', **field)).cache == "MISS"
    assert (await find(b'{"q":"a","n":1}', Authorization="Bearer x")).cache == "MISS"
    assert (await ask(searching, "/search")).cache == "MISS"
    assert (await ask(searching, "/search", "QUERY" if method == "POST" else "POST", headers=JSON)).cache == "MISS"
    assert (await find(b'{"q":"a","n":1}')).cache == "HIT", "a search changes nothing"


async def test_a_chunked_search_is_one_too(searching: Gateway, upstream: UpstreamServer, ask: Client) -> None:
    async def pieces() -> Any:
        yield b'{"q":'
        await asyncio.sleep(0.01)
        yield b'"a"}'

    got = await ask(searching, "/search", "POST", data=pieces(), headers=JSON)
    assert (got.cache, got.body) == ("MISS", b'POST /search {"q":"a"} -')
    assert (await ask(searching, "/search", "POST", data=b'{"q":"a"}', headers=JSON)).cache == "HIT"
    assert (await ask(searching, "/search", "POST", data=pieces(), headers=JSON)).cache == "HIT"


async def test_a_body_that_is_too_long_for_a_key_reaches_the_upstream_whole(
    searching: Gateway, upstream: UpstreamServer, ask: Client
) -> None:
    async def pieces() -> Any:
        for number in range(30):
            yield b"%d" % (number % 10) * 100

    long = b"".join(b"%d" % (number % 10) * 100 for number in range(30))
    for _ in range(2):
        for data in (long, pieces()):
            got = await ask(searching, "/search", "POST", data=data)
            assert got.why == "gateway; fwd=bypass; detail=body-too-long"
            assert got.body == b"POST /search " + long + b" -"
    await ask(searching, "/search")
    await ask(searching, "/search", "POST", data=long)
    assert (await ask(searching, "/search")).cache == "HIT", "a search changes nothing"


async def test_many_who_search_the_same_at_once_are_answered_by_one_fetch(
    searching: Gateway, upstream: UpstreamServer, ask: Client
) -> None:
    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(0.1)
        return await whole(request)

    upstream.answer("/search", slow)
    asked = [ask(searching, "/search", "POST", data=b'{"q": %d}' % (number % 2), headers=JSON) for number in range(20)]
    got = await asyncio.gather(*asked)
    assert {one.body for one in got} == {b'POST /search {"q": 0} -', b'POST /search {"q": 1} -'}
    assert len(upstream.requests) == 2


async def test_a_search_is_refreshed_behind_the_clients_back(
    searching: Gateway, upstream: UpstreamServer, ask: Client, clock: Clock, say: Say
) -> None:
    say("/search", "max-age=10, stale-while-revalidate=60")
    clock.stand(searching)
    await ask(searching, "/search", "POST", data=b'{"q": 1}', headers=JSON)
    clock.pass_by(20)
    stale = await ask(searching, "/search", "POST", data=b'{"q":1}', headers=JSON)
    assert (stale.cache, stale.body) == ("STALE", b"/search 1")
    await eventually(lambda: len(upstream.requests) == 2)
    assert upstream.requests[1].body == b'{"q":1}'

    async def refreshed() -> bool:
        got = await ask(searching, "/search", "POST", data=b'{"q":1}', headers=JSON)
        return (got.cache, got.body) == ("HIT", b"/search 2")

    async with asyncio.timeout(2):
        while not await refreshed():
            pass


async def test_a_client_that_waits_to_be_told_to_send_its_search_is_told(
    searching: Gateway, upstream: UpstreamServer
) -> None:
    head = b"POST /search HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    for _ in range(2):
        answer = await raw_exchange(searching.port, head + b"x")
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"POST /search x -")
    assert len(upstream.requests) == 1


async def test_a_search_that_breaks_off_is_not_answered(searching: Gateway, upstream: UpstreamServer) -> None:
    head = b"POST /search HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    assert b" 400 " in await raw_exchange(searching.port, head + b"2\r\nab\r\nnonsense\r\n")
    assert not upstream.requests


async def test_without_methods_a_post_changes_and_query_does_not(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client
) -> None:
    upstream.answer("/a", whole)
    node = await gateway({"plugins": {"cache": {}}})
    await ask(node)
    assert (await ask(node, method="QUERY", data=b"x")).why == "gateway; fwd=method"
    assert (await ask(node)).cache == "HIT"
    await ask(node, method="POST", data=b"x")
    assert (await ask(node)).cache == "MISS"


async def test_a_get_with_a_body_is_none_of_the_caches_business(
    searching: Gateway, upstream: UpstreamServer, ask: Client
) -> None:
    await ask(searching, "/search", data=b"evil")
    assert b"evil" not in (await ask(searching, "/search")).body
    for _ in range(2):
        assert (await ask(searching, "/search", data=b"evil")).why == "gateway; fwd=bypass; detail=body"


# -- the upstream ----------------------------------------------------------------------------------


async def test_what_another_server_answered_under_this_route_is_not_served(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say
) -> None:
    """A route that leads elsewhere after a reload; the name of the upstream stays."""
    say("/a")
    before = await gateway({"plugins": {"cache": {}}})
    first = await ask(before)
    moved = {"default": {"url": upstream.url.replace("127.0.0.1", "localhost")}}
    after = await gateway({"plugins": {"cache": {}}, "upstreams": moved})
    assert (await ask(after)).body != first.body
    # Nodes that were not reloaded yet have theirs.
    assert (await ask(before)).body == first.body


# -- answers for all -------------------------------------------------------------------------------


def test_what_is_known_to_be_for_all_is_bounded_and_can_be_forgotten() -> None:
    commons = Commons()
    assert not commons.known("a")
    commons.learn("a")
    assert commons.known("a")
    commons.forget("a")
    assert not commons.known("a")
    commons.learn("a")
    assert commons.known("a")
    for number in range(20_000):
        commons.learn(str(number))
    assert len(commons) <= 8192


async def test_who_is_known_looks_where_answers_for_all_lie_once_one_was_met(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say
) -> None:
    say("/a")
    node = await gateway({"plugins": {"cache": {}}})
    cache: Any = node.plugins["cache"]
    targets: Targets = cache._targets
    made: list[tuple[Any, Target]] = []

    class Spy:
        def target(self, request: Any, identity: str | None, *, unknown: bool) -> Target:
            made.append((request, targets.target(request, identity, unknown=unknown)))
            return made[-1][1]

        def __getattr__(self, name: str) -> Any:
            return getattr(targets, name)

    cache._targets = Spy()
    for who in ("", "ada", "ada", "bob"):
        await ask(node, headers={"Authorization": who} if who else {})
    nobody, ada, same, bob = (target for _, target in made)
    assert nobody.common is None, "it is its own"
    assert ada.address is ada.own is not ada.common
    assert ada.common is not None
    assert bob.common is not None
    assert ada.common.digest == bob.common.digest == nobody.own.digest
    assert len({target.own.digest for target in (nobody, ada, bob)}) == 3
    assert same.own is ada.own

    targets.learn(made[2][0], same)
    assert (same.address, same.at_common) == (same.own, False), "others may be under way with it"
    say("/a", "public, max-age=60")
    for who in ("dora", "finn", "eve"):
        await ask(node, headers={"Authorization": who})
        target = made[-1][1]
        assert target.at_common
        assert target.address.digest == nobody.own.digest != target.own.digest
    targets.forget(*made[-1])
    await ask(node, headers={"Authorization": "eve"})
    assert made[-1][1].address is made[-1][1].own


@pytest.mark.parametrize("scope", ["user", "shared"])
async def test_only_scope_auto_has_answers_for_all_beside_those_for_one(scope: Any) -> None:
    targets = Targets(Keys("g", "cache"), scope=scope, credentials=())
    route = SimpleNamespace(name="r", table=SimpleNamespace(upstream="default"))
    request = bare_request(headers=((b"Host", b"h"), (b"Authorization", b"x")), route=route)
    assert targets.target(request, None, unknown=False).common is None
