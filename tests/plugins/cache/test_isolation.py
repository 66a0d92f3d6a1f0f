"""No answer of one identity ever reaches another.

The upstream here answers with all it was told about the asker. Whatever comes from the cache must be what the upstream
would have answered to this very request, as far as it says that its answer depends on it.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import StartGateway
from tests.harness import Gateway, UpstreamServer, raw_exchange
from tests.plugins.cache.conftest import Client

CREDENTIALS = ("Authorization", "Cookie", "X-Api-Key")
SELECTING = ("Accept-Language", "X-Flavour")
few = st.sampled_from(["a", "b", "ab", "a, b", ""])
fields = st.dictionaries(st.sampled_from([*CREDENTIALS, *SELECTING, "X_Flavour", "X_Api_Key"]), few, max_size=3)
asked = st.fixed_dictionaries(
    {
        "path": st.sampled_from(["/a", "/a/", "/a?b", "/a?b=", "/ab", "/a/x.css"]),
        "headers": fields,
        "control": st.sampled_from(["max-age=60", "private, max-age=60", "public, max-age=60", "s-maxage=60"]),
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
    for number, request in enumerate([*requests, *requests]):
        # One resource answers with the same fields in `Vary` each time, as RFC 9110 asks of it.
        vary = next(other for other in requests if other["path"] == request["path"])["vary"]
        upstream.answers["now"] = {"Cache-Control": request["control"], "Vary": ", ".join(sorted(vary))}
        got = await ask(nodes[number % 2], request["path"], headers=request["headers"])
        answer = json.loads(got.body)
        mine = told(request["headers"])
        assert answer["target"] == request["path"]
        for name in CREDENTIALS:
            assert answer["told"].get(name) == mine.get(name), (request, got)
        for name in vary:
            assert normal(name, answer["told"].get(name)) == normal(name, mine.get(name)), (request, got)
        if number >= len(requests) and not any(other["control"].startswith("private") for other in requests):
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
