"""`gateway cache explain`: it finds what workers find."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import redis.asyncio
from aiohttp import web

from plugins.cache import target
from plugins.cache.explain import BYPASSES
from plugins.session import create_session_async
from tests.conftest import StartGateway
from tests.harness import Gateway, UpstreamServer, raw_exchange
from tests.plugins.cache.conftest import Client
from tests.plugins.cache.console import command, write_config

Say = Callable[..., None]
URL = "http://api.test/a"


@pytest.fixture
def config(tmp_path: Path, redis_url: str, upstream: UpstreamServer) -> Path:
    return write_config(tmp_path, redis_url, upstream.url)


async def node_of(gateway: StartGateway, config: Path) -> Gateway:
    return await gateway(tomllib.loads(config.read_text()))


async def explained(config: Path, *arguments: str) -> Any:
    done = await command(config, "explain", *arguments, "--json")
    assert (done.code, done.err) == (0, "")
    return done.json()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Cookie": "a=b"},
        {"Authorization": "Bearer x", "X-Api-Key": "k"},
        {"X-Original-URL": "/other"},
        {"Accept-Language": "de, en"},
    ],
)
@pytest.mark.parametrize("path", ["/a", "/a?", "/a?b=%2F&c", "/%61", "/a//b", "/read"])
async def test_it_finds_what_a_worker_has_stored(
    gateway: StartGateway,
    redis_client: redis.asyncio.Redis,
    config: Path,
    say: Say,
    headers: dict[str, str],
    path: str,
) -> None:
    say(unquote(path.partition("?")[0]), "public, max-age=60", Vary="Accept-Language", ETag='"1"')
    node = await node_of(gateway, config)
    lines = [f"GET {path} HTTP/1.1", "Host: api.test", *[f"{name}: {value}" for name, value in headers.items()]]
    assert b"; stored" in await raw_exchange(node.port, "\r\n".join([*lines, "Connection: close", "", ""]).encode())
    fields = [f"-H{name}: {value}" for name, value in headers.items()]
    told = await explained(config, f"http://api.test{path}", *fields)
    assert told["verdict"].startswith("HIT: fresh for another")
    assert told["key"]["name"].encode() in await redis_client.keys("gateway:cache:*")
    assert told["variant"]["name"].encode() in await redis_client.keys("gateway:cache:*")
    assert told["varies_on"] == {"accept-language": [headers[name] for name in headers if name == "Accept-Language"]}
    assert (told["stored"]["status"], told["stored"]["etag"], told["stored"]["vary"]) == (
        200,
        '"1"',
        ["accept-language"],
    )
    other = await explained(config, f"http://api.test{path}", *fields, "-HAccept-Language: fr")
    assert other["verdict"] == "MISS: nothing is stored for these field values"


async def test_a_users_answer_is_found_under_the_user(
    gateway: StartGateway,
    tmp_path: Path,
    upstream: UpstreamServer,
    redis_url: str,
    redis_client: redis.asyncio.Redis,
    ask: Client,
    say: Say,
) -> None:
    config = write_config(tmp_path, redis_url, upstream.url, chain='["session", "cache"]')
    say("/a", "max-age=60")
    node = await node_of(gateway, config)
    session = await create_session_async(redis_client, "ada")
    assert "stored" in (await ask(node, "/a", headers={"Cookie": f"session={session}"})).why
    told = await explained(config, URL, "--as-user", "ada")
    assert told["verdict"].startswith("HIT")
    assert told["key"]["of"]["who"] == ["identity ada"]
    assert [one["of"] for one in told["generations"]] == ["everything", "route all", "this URL", "user ada"]
    assert (await explained(config, URL, "--as-user", "bob"))["verdict"] == "MISS: nothing is stored"
    shown = await command(config, "explain", URL)
    assert "session: if one of them knows the user, give --as-user ID" in shown.out


async def test_a_right_that_is_missing_is_no_purge(
    gateway: StartGateway,
    tmp_path: Path,
    upstream: UpstreamServer,
    acl_user: Callable[..., Awaitable[str]],
    config: Path,
    ask: Client,
    say: Say,
) -> None:
    say("/a", "max-age=60")
    await ask(await node_of(gateway, config), "/a")
    assert (await explained(config, URL))["verdict"].startswith("HIT")
    url = await acl_user("~gateway:cache:*", "~gateway:lock:*", "+@all")
    config = write_config(tmp_path, url, upstream.url)
    refused = await command(config, "explain", URL)
    assert (refused.code, refused.out) == (1, "")
    assert "its user may not use the keys" in refused.err


async def test_a_purge_is_told_with_what_was_purged(gateway: StartGateway, config: Path, ask: Client, say: Say) -> None:
    say("/a", "max-age=60", Cache_Tag="news")
    node = await node_of(gateway, config)
    await ask(node, "/a")
    assert (await explained(config, URL))["stored"]["tags"] == ["news"]
    assert (await command(config, "purge", "--url", URL)).code == 0
    told = await explained(config, URL)
    assert told["stored"]["purged"] == "yes"
    assert told["verdict"] == "MISS: what is stored was purged"
    assert [one["of"] for one in told["generations"] if not one["there"]] == ["this URL"]
    assert (await ask(node, "/a")).cache == "MISS"
    assert (await explained(config, URL))["stored"]["purged"] is None
    assert (await command(config, "purge", "--soft", "--tag", "news")).code == 0
    told = await explained(config, URL)
    assert told["stored"]["purged"] == "softly"
    assert "was purged softly; it may be revalidated" in told["verdict"]


async def test_stale_and_ended(gateway: StartGateway, config: Path, ask: Client, say: Say) -> None:
    node = await node_of(gateway, config)
    say("/a", "max-age=0, stale-while-revalidate=60")
    say("/b", "max-age=60")
    await ask(node, "/a")
    await ask(node, "/b")
    assert (await explained(config, URL))["verdict"].startswith("STALE")
    assert "wants a newer one" in (await explained(config, "http://api.test/b", "-HCache-Control: no-cache"))["verdict"]


@pytest.mark.parametrize(
    ("arguments", "bypass"),
    [
        (("-X", "POST"), "fwd=method"),
        (("-HCache-Control: no-store",), "fwd=request; detail=no-store"),
    ],
)
async def test_why_the_cache_is_passed_by(config: Path, arguments: tuple[str, ...], bypass: str) -> None:
    told = await explained(config, URL, *arguments)
    assert told["bypass"] == bypass
    assert told["verdict"].startswith("BYPASS: ")
    assert told["stored"] is None


async def test_routes_without_a_cache_and_none_at_all(config: Path) -> None:
    assert "no cache is in the chain of route plain" in (await explained(config, "http://api.test/plain/x"))["verdict"]
    told = await explained(config, "http://api.example/a")
    assert told["route"] is None
    assert told["verdict"].startswith("no route takes")


async def test_what_could_not_be_stored_and_the_lock(
    gateway: StartGateway, redis_client: redis.asyncio.Redis, config: Path, ask: Client, say: Say
) -> None:
    say("/a", "no-store")
    node = await node_of(gateway, config)
    await ask(node, "/a")
    told = await explained(config, URL)
    assert told["stored"]["kind"] == "mark"
    assert "could not be stored" in told["verdict"]
    await redis_client.set(told["key"]["name"].replace(":cache:", ":lock:"), "owner", px=3000)
    assert (await explained(config, URL))["lock"]["held"]


async def test_what_cannot_be_read_is_told(redis_client: redis.asyncio.Redis, config: Path) -> None:
    told = await explained(config, URL)
    assert told["verdict"] == "MISS: nothing is stored"
    await redis_client.set(told["key"]["name"], "garbage")
    assert "cannot be used" in (await explained(config, URL))["verdict"]


async def test_credentials_are_not_shown(config: Path) -> None:
    fields = ("-HCookie: a=letmein", "-HAuthorization: Bearer letmein", "-HX-Original-URL: /letmein")
    for arguments in (fields, (*fields, "--json"), ("-HCookie letmein",), ("-HA: letmein\r\nB: c",)):
        done = await command(config, "explain", URL, *arguments)
        assert "letmein" not in done.out + done.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("/a",), "such as http://example.com/path"),
        (("ftp://api.test/a",), "such as http://example.com/path"),
        (("https://api.test/a",), "server.trusted_proxies names no proxy"),
        ((URL, "-H", "nothing"), "expected 'Name: value'"),
        ((URL, "-H", "Host: a b"), "Host field"),
        ((URL + "/ü",), "%XX"),
        ((URL, "--method", "GET /x"), "is no method"),
        (("http://api.test/" + "a" * 9000,), "refuses"),
    ],
)
async def test_what_is_no_request_is_one_line(config: Path, arguments: tuple[str, ...], told: str) -> None:
    done = await command(config, "explain", *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert told in done.err


async def test_behind_a_trusted_proxy_https_has_answers_of_its_own(
    gateway: StartGateway, config: Path, ask: Client, say: Say
) -> None:
    config.write_text(config.read_text() + '[server]\ntrusted_proxies = ["127.0.0.0/8"]\n')
    say("/a", "max-age=60")
    node = await node_of(gateway, config)
    await ask(node, "/a", headers={"X-Forwarded-Proto": "https"})
    assert (await explained(config, "https://api.test/a"))["verdict"].startswith("HIT")
    assert (await explained(config, URL))["verdict"] == "MISS: nothing is stored"


async def test_what_the_configuration_makes_a_part_of_the_key(
    gateway: StartGateway, tmp_path: Path, upstream: UpstreamServer, redis_url: str, ask: Client, say: Say
) -> None:
    keys = 'ignore_query = ["utm_*"]\nkey_headers = ["X-Shop"]\nkey_cookies = ["currency"]\nmethods = ["POST"]'
    config = write_config(tmp_path, redis_url, upstream.url, cache=keys)
    say("/a", "public, max-age=60")
    node = await node_of(gateway, config)
    await ask(node, "/a?b=1&utm_source=x", headers={"X-Shop": "1"})
    told = await explained(config, f"{URL}?utm_campaign=y&b=1", "-HX-Shop: 1")
    assert told["verdict"].startswith("HIT")
    assert told["key"]["of"]["target"] == "/a?b=1"
    assert (await explained(config, f"{URL}?b=1", "-HX-Shop: 2"))["verdict"] == "MISS: nothing is stored"
    out = (await command(config, "explain", f"{URL}?b=1")).out
    assert "X-Shop, cookie currency" in out

    await ask(node, "/a", method="POST", data=b'{"q": [1]}', headers={"Content-Type": "application/json"})
    kind = "-HContent-Type: application/json"
    told = await explained(config, URL, kind, "--data", '{ "q":[1] }')
    assert told["verdict"].startswith("HIT")
    (tmp_path / "body").write_text('{"q": [2]}')
    assert (await explained(config, URL, kind, "-X", "POST", "-d", f"@{tmp_path}/body"))[
        "verdict"
    ] == "MISS: nothing is stored"


async def test_a_body_that_cannot_be_read(config: Path) -> None:
    for arguments, told in (
        (("-d", "@nothing"), "No such file"),
        (("-d", "x", "-HContent-Length: 1"), "leave it out"),
    ):
        done = await command(config, "explain", URL, *arguments)
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert told in done.err


async def test_the_upstream_is_as_the_gateway_was_started_with(
    gateway: StartGateway, tmp_path: Path, upstream: UpstreamServer, redis_url: str, ask: Client, say: Say
) -> None:
    config = write_config(tmp_path, redis_url, upstream.url)
    say("/a", "max-age=60")
    await ask(await node_of(gateway, config), "/a")
    config.write_text(config.read_text().replace(upstream.url, "http://127.0.0.1:1"))
    told = await explained(config, URL)
    assert (told["verdict"], told["key"]["of"]["upstream"]) == ("MISS: nothing is stored", "http://127.0.0.1:1")
    assert "other keys: --upstream URL" in (await command(config, "explain", URL)).out
    found = (await command(config, "explain", URL, "--upstream", upstream.url)).out
    assert found.startswith("HIT")
    assert "--upstream" not in found


async def test_a_part_is_told(gateway: StartGateway, config: Path, ask: Client, say: Say) -> None:
    say("/a", "max-age=60")
    node = await node_of(gateway, config)
    await ask(node, "/a")
    assert (await explained(config, URL, "-HRange: bytes=0-1"))["verdict"].startswith("HIT")
    assert "only the upstream can judge" in (await explained(config, URL, '-HIf-Match: "1"'))["verdict"]


async def test_a_stored_part_is_told(
    gateway: StartGateway, config: Path, upstream: UpstreamServer, ask: Client
) -> None:
    fields = {"Cache-Control": "max-age=60", "Content-Range": "bytes 0-4/10"}
    upstream.answer("/a", lambda request: web.Response(status=206, body=b"01234", headers=fields))
    node = await node_of(gateway, config)
    await ask(node, "/a", headers={"Range": "bytes=0-4"})
    told = await explained(config, URL, "-HRange: bytes=1-2")
    assert (told["verdict"][:3], told["stored"]["part"]) == ("HIT", [0, 4, 10])
    assert "only a part" in (await explained(config, URL, "-HRange: bytes=4-5"))["verdict"]
    assert (await explained(config, URL))["verdict"] == "MISS: nothing is stored"


def test_every_reason_of_the_workers_has_words() -> None:
    source = Path(target.__file__).with_name("target.py").read_text()
    reasons = set(re.findall(r'"(fwd=[^"]+)"', source))
    assert reasons - {"fwd=bypass; detail=identity-unknown"} <= set(BYPASSES)


async def test_what_is_for_all_is_found_for_those_with_credentials(
    gateway: StartGateway, config: Path, ask: Client, say: Say
) -> None:
    say("/a", "public, max-age=60")
    node = await gateway(tomllib.loads(config.read_text()))
    await ask(node, headers={"Authorization": "Bearer x"})
    told = await explained(config, URL, "-H", "Authorization: Bearer y")
    assert told["verdict"].startswith("HIT")
    assert told["for_all"]["digest"] != told["key"]["digest"]
    say("/b", "max-age=60")
    await ask(node, "/b")
    told = await explained(config, "http://api.test/b", "-H", "Authorization: Bearer y")
    assert told["verdict"].startswith("MISS"), "it is for those without credentials"
