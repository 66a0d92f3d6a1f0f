"""No answer of one identity ever reaches another.

The upstream here answers with all it was told about the asker. Whatever comes from the cache must be what the upstream
would have answered to this very request, as far as it says that its answer depends on it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from typing import Any

import aiohttp
import pytest
import yarl
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from tests.conftest import StartGateway
from tests.harness import Gateway, UpstreamServer, eventually, raw_exchange
from tests.plugins.cache.conftest import Client
from tests.plugins.test_session import cookie, write

CREDENTIALS = ("Authorization", "Cookie", "X-Api-Key")
SELECTING = ("Accept-Language", "X-Flavour")
FOR_ALL = ("public, max-age=60", "s-maxage=60")
hosts = itertools.count()
few = st.sampled_from(["a", "b", "ab", "a, b", ""])
fields = st.dictionaries(st.sampled_from([*CREDENTIALS, *SELECTING, "X_Flavour", "X_Api_Key"]), few, max_size=3)
asked = st.fixed_dictionaries(
    {
        "path": st.sampled_from(["/a", "/a/", "/a?b", "/a?b=", "/ab", "/a/x.css"]),
        "headers": fields,
        "control": st.sampled_from(["max-age=60", "private, max-age=60", *FOR_ALL]),
        "vary": st.sets(st.sampled_from(SELECTING)),
    }
)


def told(headers: Any) -> dict[str, list[str]]:
    """What an upstream that reads `_` as `-` knows of the asker."""
    found: dict[str, list[str]] = {}
    for name, value in headers.items():
        plain = name.replace("_", "-").title()
        if plain in {*CREDENTIALS, *SELECTING}:
            found.setdefault(plain, []).append(value)
    return found


class Everything(dict[str, Any]):
    """One answer for each path, with the fields in `now`."""

    def get(self, key: str, default: Any = None) -> Any:
        return self.answer

    async def answer(self, request: web.Request) -> web.Response:
        return web.json_response({"target": request.raw_path, "told": told(request.headers)}, headers=self["now"])


@pytest.fixture
async def nodes(gateway: StartGateway, upstream: UpstreamServer) -> list[Gateway]:
    upstream.answers = Everything()
    return [await gateway({"plugins": {"cache": {}}}) for _ in range(2)]


@settings(max_examples=60)
@given(requests=st.lists(asked, min_size=2, max_size=6))
async def test_credentials_and_variants_never_mix(
    nodes: list[Gateway], upstream: UpstreamServer, ask: Client, redis_client: Any, requests: list[dict[str, Any]]
) -> None:
    await redis_client.flushall()
    upstream.requests.clear()
    # The nodes hear of it a moment later than we do.
    await eventually(lambda: not any(len(node.worker.redis.mirror) for node in nodes), every=0)
    # They remember where they have met what is for all.
    host = f"{next(hosts)}.test"
    for number, request in enumerate([*requests, *requests]):
        # One resource answers with the same fields in `Vary` each time, as RFC 9110 asks of it.
        vary = next(other for other in requests if other["path"] == request["path"])["vary"]
        upstream.answers["now"] = {"Cache-Control": request["control"], "Vary": ", ".join(sorted(vary))}
        got = await ask(nodes[number % 2], request["path"], headers={"Host": host, **request["headers"]})
        answer = json.loads(got.body)
        mine = told(request["headers"])
        assert answer["target"] == request["path"]
        if got.headers["Cache-Control"] not in FOR_ALL:
            for name in CREDENTIALS:
                assert answer["told"].get(name) == mine.get(name), (request, got)
        for name in vary:
            assert normal(name, answer["told"].get(name)) == normal(name, mine.get(name)), (request, got)
        # What is for all one time and one's own the next may be fetched again.
        kinds = {"all" if other["control"] in FOR_ALL else other["control"] for other in requests}
        if number >= len(requests) and kinds in ({"all"}, {"max-age=60"}):
            assert got.cache == "HIT", (request, got)


def normal(name: str, values: list[str] | None) -> list[str] | None:
    if values is None or name != "Accept-Language":
        return values
    return [value.replace(" ", "") for value in values]


async def test_an_identity_does_not_share_with_who_sends_its_session_and_other_credentials(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, tmp_path: Any
) -> None:
    """An attacker's session cookie foisted on a victim must not get him what the victim's token is answered."""
    (tmp_path / "by_cookie.py").write_text(
        "from gateway.plugin import Plugin\n"
        "class ByCookie(Plugin):\n"
        "    def ask(self, request, redis):\n"
        "        request.identity = request.cookie('session')\n"
    )

    async def answer(request: web.Request) -> web.Response:
        text = request.headers.get("Authorization", "nobody")
        return web.Response(text=text, headers={"Cache-Control": "private, max-age=60"})

    upstream.answer("/me", answer)
    node = await gateway({"plugins": {"who": {"use": "by_cookie:ByCookie"}, "cache": {}}}, folder=tmp_path)
    foisted = {"Cookie": "session=mallory"}
    assert (await ask(node, "/me", headers={**foisted, "Authorization": "Bearer victim"})).body == b"Bearer victim"
    assert (await ask(node, "/me", headers=foisted)).body == b"nobody"
    # Other cookies do not split an identity.
    again = await ask(node, "/me", headers={"Cookie": "theme=dark; session=mallory"})
    assert (again.cache, again.body) == ("HIT", b"nobody")


@pytest.mark.parametrize(
    "name", ["X-Original-URL", "X_Rewrite_Url", "X-HTTP-Method-Override", "X-Forwarded-Host", "X-Forwarded-Prefix"]
)
async def test_a_field_that_steers_the_upstream_cannot_poison_others(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, name: str
) -> None:
    async def answer(request: web.Request) -> web.Response:
        values = [value for own, value in request.headers.items() if own.replace("_", "-").lower() == plain]
        return web.Response(text=",".join(values) or "none", headers={"Cache-Control": "max-age=60"})

    plain = name.replace("_", "-").lower()
    upstream.answer("/a", answer)
    for trusted in ([], ["127.0.0.0/8"]):
        node = await gateway({"server": {"trusted_proxies": trusted}, "plugins": {"cache": {}}})
        host = f"{len(trusted)}.test"
        await ask(node, headers={"Host": host, name: "evil"})
        assert b"evil" not in (await ask(node, headers={"Host": host})).body


async def test_an_absolute_target_is_the_host_it_names(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=f"for {request.headers['Host']}", headers={"Cache-Control": "max-age=60"})

    upstream.answer("/a", answer)
    node = await gateway({"plugins": {"cache": {}}})
    request = b"GET http://evil.test/a HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n"
    assert b"for evil.test" in await raw_exchange(node.port, request)
    assert (await ask(node, headers={"Host": "good.test"})).body == b"for good.test"
    assert (await ask(node, headers={"Host": "EVIL.test"})).cache == "HIT"


async def test_an_identity_that_redis_could_not_tell_is_not_taken_for_nobody(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, tmp_path: Any
) -> None:
    (tmp_path / "unsure.py").write_text(
        "from gateway.plugin import Plugin\n"
        "class Unsure(Plugin):\n"
        "    def ask(self, request, redis):\n"
        "        request.identity_pending = True\n"
    )

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="mine", headers={"Cache-Control": "max-age=60"})

    upstream.answer("/a", answer)
    node = await gateway({"plugins": {"who": {"use": "unsure:Unsure"}, "cache": {}}}, folder=tmp_path)
    for _ in range(2):
        assert (await ask(node)).why == "gateway; fwd=bypass; detail=identity-unknown"


async def test_what_the_gateway_passes_on_of_a_proxy_in_front_cannot_poison_others(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client
) -> None:
    """`Forwarded` comes through a proxy that only knows `X-Forwarded-For`, just as the client wrote it."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=request.headers["Forwarded"], headers={"Cache-Control": "max-age=60"})

    upstream.answer("/a", answer)
    node = await gateway({"server": {"trusted_proxies": ["127.0.0.0/8"]}, "plugins": {"cache": {}}})
    for evil in ("host=evil", 'for="x;host=evil"', "for=1.2.3.4;host=evil"):
        await ask(node, headers={"Forwarded": evil})
        assert b"evil" not in (await ask(node)).body
        assert b"evil" not in (await ask(node, headers={"Forwarded": "for=1.2.3.4"})).body
    # Its clients' addresses do not split what they may share.
    assert (await ask(node, headers={"Forwarded": 'for="[::1]:8000"'})).cache == "HIT"


@pytest.mark.parametrize(
    "name", ["X-Auth-Token", "Private-Token", "X-Session-Id", "X_User_Id", "Remote-User", "X-Amzn-Oidc-Data"]
)
async def test_a_field_that_sounds_like_a_credential_is_one(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, name: str
) -> None:
    """`ttl` keeps what the upstream did not say is private: it may not know of caches at all."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=request.headers.get(name, "nobody"))

    upstream.answer("/a", answer)
    node = await gateway({"plugins": {"cache": {"ttl": 60}}})
    for who in ("ada", "bob"):
        assert (await ask(node, headers={name: who, "User-Agent": who})).body.decode() == who
    assert (await ask(node)).body == b"nobody"
    assert (await ask(node, headers={"User-Agent": "other"})).cache == "HIT"


async def test_who_is_only_known_behind_the_cache_gets_nothing_stored(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, tmp_path: Any, caplog: Any
) -> None:
    """A wrong order of plugins: what was fetched for one user must not be kept as if it was for nobody."""
    (tmp_path / "behind.py").write_text(
        "from gateway.plugin import Plugin\n"
        "class Behind(Plugin):\n"
        "    on_redis_failure = 'refuse'\n"
        "    async def __call__(self, request, call_next):\n"
        "        request.identity = request.headers.get('X-Who')\n"
        "        return await call_next(request)\n"
    )

    async def answer(request: web.Request) -> web.Response:
        status = 500 if request.query else 200
        return web.Response(
            text=request.headers.get("X-Who", "-"), status=status, headers={"Cache-Control": "max-age=9"}
        )

    upstream.answer("/a", answer)
    node = await gateway({"plugins": {"cache": {}, "who": {"use": "behind:Behind"}}}, folder=tmp_path)
    assert "cache stands before who" in caplog.text
    for who in ("ada", "bob"):
        got = await ask(node, headers={"X-Who": who})
        assert (got.cache, got.body.decode()) == ("MISS", who)
    failed = await asyncio.gather(*[ask(node, "/a?fail", headers={"X-Who": who}) for who in ("ada", "bob")])
    assert [got.body for got in failed] == [b"ada", b"bob"]


async def test_one_copy_for_all_is_no_reason_to_show_one_users_error_to_others(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client
) -> None:
    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(0.1)
        return web.Response(text="no room for " + request.headers["Authorization"], status=500)

    upstream.answer("/a", answer)
    node = await gateway({"plugins": {"cache": {"scope": "shared"}}})
    got = await asyncio.gather(*[ask(node, headers={"Authorization": who}) for who in ("ada", "bob")])
    assert [answer.body for answer in got] == [b"no room for ada", b"no room for bob"]


async def test_one_copy_for_all_is_not_made_of_what_a_key_got(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=request.headers.get("X-Api-Key", "-"), headers={"Cache-Control": "max-age=60"})

    upstream.answer("/a", answer)
    node = await gateway({"plugins": {"cache": {"scope": "shared"}}})
    assert (await ask(node, headers={"X-Api-Key": "ada"})).body == b"ada"
    assert (await ask(node)).body == b"-"


async def test_an_empty_query_is_another_target(gateway: StartGateway, upstream: UpstreamServer, ask: Client) -> None:
    """The upstream sees the `?`: one that leads to the plain URL by a redirect must not lead that one in a circle."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=upstream.requests[-1].target, headers={"Cache-Control": "max-age=60"})

    upstream.answer("/a", answer)
    node = await gateway({"plugins": {"cache": {}}})
    for target in (b"/a?", b"/a"):
        request = b"GET %b HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n" % target
        assert (await raw_exchange(node.port, request)).endswith(b"\r\n\r\n" + target)


async def test_case_counts_in_the_parameters_of_a_media_type(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=request.headers["Accept"], headers={"Cache-Control": "max-age=60", "Vary": "Accept"})

    upstream.answer("/a", answer)
    node = await gateway({"plugins": {"cache": {}}})
    for accept in ('a/b;profile="X, y"', 'a/b;profile="x,y"'):
        assert (await ask(node, headers={"Accept": accept})).body.decode() == accept


# -- attacks ---------------------------------------------------------------------------------------

KEYED = {
    "ignore_query": ["utm_*"],
    "sort_query": True,
    "key_headers": ["X-Country"],
    "key_cookies": ["plan"],
    "methods": ["POST", "QUERY"],
    "ttl": 60,
}
NAMES = (
    "Authorization authorization X-Country X_Country x-country Cookie X-Api-Key X_Api_Key X-Host X-Original-URL"
    " X_Http_Method_Override X-HTTP-Method-Override Content-Encoding"
)
TARGETS = (
    "/a /a?b=1&c=2 /a?c=2&b=1 /a?b=1&b=2 /a?b=2&b=1 /a?utm_x=1 /a?b=1;utm_x=1 /a?%75tm_x=1 /a?utm_x=%26b /a?utm_x[]=1"
    " /a/x.css /A"
)
VALUES = ["a", "b", "a,b", "a, b", "plan=a", "plan=b", "plan=a; plan=b", ""]
BODIES = [b"", b"{}", b'{"a":1}', b'{"a": 1}', b'{"a":1.0}', b'{"a":1,"a":2}', b'{"a":2}', b"a=1"]
TYPES: list[dict[str, str]] = [
    {"Content-Type": "application/json"},
    {"Content_Type": "application/json"},
    {"Content-Type": "text/plain"},
    {},
]
visible = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["GET", "POST", "QUERY"]),
        "path": st.sampled_from(TARGETS.split()),
        "headers": st.dictionaries(st.sampled_from(NAMES.split()), st.sampled_from(VALUES), max_size=3),
        "host": st.sampled_from(["one.test", "two.test", "one.test:80", "ONE.test"]),
        "body": st.sampled_from(BODIES),
        "type": st.sampled_from(TYPES),
    }
)
# Pairs that differ in one thing only find more than pairs that differ in all.
differing = visible.flatmap(
    lambda one: st.lists(
        st.tuples(st.sampled_from(sorted(one)), visible).map(lambda change: {**one, change[0]: change[1][change[0]]}),
        min_size=2,
        max_size=6,
    ).map(lambda others: [one, *others])
)
# What a request says to no upstream, or to each anew.
TOLD_ANYWAY = {"connection", "forwarded", "via", "content-length", "user-agent", "accept", "accept-encoding"}


async def echo(request: web.Request) -> web.Response:
    lines = [(name.decode().lower(), value.decode()) for name, value in request.raw_headers]
    seen = [
        request.method,
        request.raw_path,
        sorted(line for line in lines if line[0] not in TOLD_ANYWAY and not line[0].startswith("x-forwarded")),
        (await request.read()).decode(),
    ]
    return web.json_response(seen)


def plain(seen: Any) -> Any:
    """What an upstream has seen, but for what the configuration says does not count."""
    method, target, lines, body = seen
    path, _, query = target.partition("?")
    pieces = query.split("&")
    if all(piece.replace("=", "").replace("_", "").isalnum() for piece in pieces):
        pieces = sorted([piece for piece in pieces if piece[:4] != "utm_"], key=lambda piece: piece.partition("=")[0])
        target = f"{path}?{'&'.join(pieces)}" if pieces else path
    if method == "GET":
        lines = [line for line in lines if not line[0].startswith("content")]
    lines = [[name, value.lower() if name == "host" else value] for name, value in lines]
    lines = [[name, value.replace(", ", ",") if name == "x-country" else value] for name, value in lines]
    named = [value for name, value in lines if name == "content-type"]
    if named == ["application/json"] and not any(name in ("content-encoding", "content_type") for name, _ in lines):
        body = body.replace(" ", "")
    return [method, target, lines, body]


@settings(max_examples=100)
@given(requests=differing)
async def test_whoever_shares_an_answer_would_have_been_answered_so(
    keyed: list[Gateway], http: aiohttp.ClientSession, redis_client: Any, requests: list[dict[str, Any]]
) -> None:
    """Two requests that differ in anything the upstream sees share no answer, except in what is to be ignored."""
    await redis_client.flushall()
    await eventually(lambda: not any(len(node.worker.redis.mirror) for node in keyed), every=0)
    for number, request in enumerate([*requests, *requests]):
        node = keyed[number % 2]
        headers: CIMultiDict[str] = CIMultiDict()
        for name, value in {**request["headers"], **request["type"], "Host": request["host"]}.items():
            headers[name] = value
        options = {"data": request["body"]} if request["method"] != "GET" else {}
        url = yarl.URL(node.url + request["path"], encoded=True)
        async with http.request(
            request["method"], url, headers=headers, skip_auto_headers=["Content-Type"], **options
        ) as answer:
            got = await answer.json()
        mine = sorted([name.lower(), value] for name, value in headers.items())
        told = [line for line in mine if line[0] not in TOLD_ANYWAY]
        body = request["body"].decode() if options else ""
        assert plain(got) == plain([request["method"], request["path"], told, body])


@pytest.fixture
async def keyed(gateway: StartGateway, upstream: UpstreamServer) -> list[Gateway]:
    class Echoing(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            return echo

    upstream.answers = Echoing()
    return [await gateway({"plugins": {"cache": KEYED}}) for _ in range(2)]


@pytest.mark.parametrize("path", ["/account/x.css", "/account%2Fx.css", "/account/..%2fstatic/x.css", "/account;x.css"])
async def test_a_path_that_looks_public_is_kept_for_him_who_asked(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, path: str
) -> None:
    """Cache deception: a victim is led to a URL that ends like a picture's, where the upstream shows his account."""

    async def account(request: web.Request) -> web.Response:
        return web.Response(text=request.headers.get("Cookie", "nobody"), headers={"Content-Type": "text/css"})

    class Anywhere(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            return account

    upstream.answers = Anywhere()
    cache = {"ttl": 60, "ttl_by_content_type": {"text/css": 600}, "ignore_query": ["*"]}
    node = await gateway({"plugins": {"cache": cache}})
    assert (await ask(node, path, headers={"Cookie": "id=victim"})).body == b"id=victim"
    for headers in ({}, {"Cookie": "id=mallory"}, {"Cookie": ""}):
        assert b"victim" not in (await ask(node, path, headers=headers)).body
        assert b"victim" not in (await ask(node, f"{path}?x.css", headers=headers)).body


async def test_the_case_of_a_fields_name_says_nothing_and_that_of_a_credential_all(
    gateway: StartGateway, upstream: UpstreamServer
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=request.headers["Authorization"], headers={"Cache-Control": "private, max-age=60"})

    upstream.answer("/a", answer)
    node = await gateway({"plugins": {"cache": {}}})

    async def get(line: bytes) -> bytes:
        return await raw_exchange(node.port, b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n%b\r\n\r\n" % line)

    assert (await get(b"Authorization: Basic QQ==")).endswith(b"\r\n\r\nBasic QQ==")
    assert b"X-Cache: HIT" in await get(b"aUTHORIZATION: Basic QQ==")
    assert (await get(b"Authorization: Basic qQ==")).endswith(b"\r\n\r\nBasic qQ==")


async def test_a_session_that_changes_its_user_gets_nothing_of_the_one_before(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, redis_client: Any
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=request.headers.get("X-User-Id", "nobody"), headers={"Cache-Control": "max-age=60"})

    upstream.answer("/me", answer)
    config = {"plugins": {"session": {"required": False}, "cache": {}}}
    nodes = [await gateway(config), await gateway({**config, "redis": {"mirror": {"max_bytes": 0}}})]
    expires = str(int(time.time()) + 600)
    key = await write(redis_client, "one-session-1234", userId="ada", createdAt="0", expiresAt=expires)
    mine = cookie("one-session-1234")
    for node in nodes * 2:
        assert (await ask(node, "/me", headers=mine)).body == b"ada"
    for user in ("bob", "ada", "eve"):
        await redis_client.hset(key, "userId", user)
        # The node without a mirror asks Redis each time; the other has heard of it by then.
        assert (await ask(nodes[1], "/me", headers=mine)).body.decode() == user
        assert (await ask(nodes[0], "/me", headers=mine)).body.decode() == user
    await redis_client.delete(key)
    for node in reversed(nodes):
        assert (await ask(node, "/me", headers=mine)).body == b"nobody"


async def test_credentials_are_only_stored_as_a_hash(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Any, redis_client: Any
) -> None:
    say("/a")
    cache = {"key_headers": ["X-Country"], "key_cookies": ["plan"], "methods": ["POST"]}
    node = await gateway({"plugins": {"cache": cache}})
    headers = {"Authorization": "Bearer secret1", "Cookie": "plan=secret2", "X-Country": "secret3"}
    await ask(node, headers=headers)
    await ask(node, method="POST", data=b"secret4", headers=headers)
    for key in await redis_client.keys("*"):
        stored = await redis_client.dump(key)
        assert b"secret" not in key + stored, key


async def test_a_name_with_underscores_is_no_credential_to_all_servers(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=request.headers.get("X-Api-Key", "nobody"), headers={"Cache-Control": "max-age=60"})

    upstream.answer("/a", answer)
    node = await gateway({"plugins": {"cache": {}}})
    assert (await ask(node, headers={"X_Api_Key": "ada"})).body == b"nobody"
    assert (await ask(node, headers={"X-Api-Key": "ada"})).body == b"ada"
