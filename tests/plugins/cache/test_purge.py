"""Purging: at once, on every node, and only what was named."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from gateway.console import settings
from plugins.cache.commands import commands
from plugins.cache.keys import of_url
from plugins.cache.purge import MAX_NAMED, Purge, parse_url
from tests.conftest import StartGateway
from tests.harness import UpstreamServer, Valkey, eventually
from tests.plugins.cache.conftest import Client, Clock
from tests.plugins.test_session import cookie, write

Say = Callable[..., None]


@pytest.mark.parametrize(
    ("url", "host", "expected"),
    [
        ("http://Example.com/a?b=c", None, ("example.com", "/a?b=c")),
        ("https://example.com:8443", None, ("example.com:8443", "/")),
        ("http://example.com?x", None, ("example.com", "/?x")),
        ("http://example.com/a?", None, ("example.com", "/a")),
        ("http://example.com/a%2Fb#part", None, ("example.com", "/a%2Fb")),
        ("/a?b", "example.com", ("example.com", "/a?b")),
    ],
)
def test_urls(url: str, host: str | None, expected: tuple[str, str]) -> None:
    assert parse_url(url, host) == expected


@pytest.mark.parametrize(
    ("url", "host"),
    [("/a", None), ("example.com/a", None), ("ftp://example.com/", None), ("http://a/", "b"), ("http://u@a/", None)],
)
def test_what_is_no_url_is_refused(url: str, host: str | None) -> None:
    with pytest.raises(ValueError, match=r"host|expected"):
        parse_url(url, host)


@pytest.fixture
def run(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    file = tmp_path / "config.toml"
    file.write_text(
        f'[redis]\nurl = "{redis_url}"\n[upstreams.default]\nurl = "http://localhost"\n'
        '[plugins.cache]\n[[routes]]\nname = "all"\nplugins = ["cache"]\n'
    )
    monkeypatch.setattr(settings, "config", file)

    def run(*arguments: str, exit_code: int = 0) -> str:
        result = CliRunner().invoke(commands, ["purge", *arguments])
        assert result.exit_code == exit_code, result.output
        return result.output

    return run


USER = {"plugins": {"session": {"required": False}, "cache": {}}}


@pytest.mark.parametrize(
    ("arguments", "purged"),
    [
        (["--url", "http://api.test/a"], ["ada /a", "- /a"]),
        (["--url", "/a", "--host", "api.test"], ["ada /a", "- /a"]),
        (["--url", "http://api.test/a?x"], []),
        (["--user", "ada"], ["ada /a", "ada /b"]),
        (["--tag", "one"], ["ada /a", "- /a"]),
        (["--tag", "two", "--tag", "none"], ["ada /a", "- /a", "ada /b", "- /b"]),
        (["--route", "all"], ["ada /a", "- /a", "ada /b", "- /b"]),
        (["--all"], ["ada /a", "- /a", "ada /b", "- /b"]),
    ],
    ids=" ".join,
)
async def test_each_kind_reaches_every_node_at_once(
    gateway: StartGateway,
    redis_client: redis.asyncio.Redis,
    ask: Client,
    say: Say,
    run: Callable[..., str],
    arguments: list[str],
    purged: list[str],
) -> None:
    say("/a", "max-age=60", Cache_Tag="one, two")
    say("/b", "max-age=60", Surrogate_Key="two three")
    expires = str(int(time.time()) + 3600)
    await write(redis_client, "ada-session-1234", userId="ada", createdAt="0", expiresAt=expires)
    nodes = [await gateway(USER), await gateway(USER)]
    requests: dict[str, dict[str, Any]] = {
        f"{who} {path}": {"path": path, "headers": cookie("ada-session-1234") if who == "ada" else {}}
        for who in ("ada", "-")
        for path in ("/a", "/b")
    }
    for node in nodes:
        for options in requests.values():
            await ask(node, **options)
    for node in nodes:
        assert [(await ask(node, **options)).cache for options in requests.values()] == ["HIT"] * 4
    said = run(*arguments)
    assert said.startswith("Purged ")

    async def seen() -> bool:
        missed = {name for name, options in requests.items() if (await ask(nodes[1], **options)).cache != "HIT"}
        found.update(missed)
        return found == set(purged)

    found: set[str] = set()
    await eventually(seen, within=0.05 if purged else 0.01)
    # The other node finds what this one has fetched anew.
    for name, options in requests.items():
        assert (await ask(nodes[0], **options)).cache == "HIT", name
    assert found == set(purged)


async def test_a_purge_is_heard_on_another_node_within_moments(
    gateway: StartGateway, redis_client: redis.asyncio.Redis, ask: Client, say: Say
) -> None:
    say("/a", "max-age=60", Cache_Tag="one")
    nodes = [await gateway({"plugins": {"cache": {}}}) for _ in range(2)]
    took = []
    for purge in [
        Purge((("api.test", "/a"),)),
        Purge(tags=("one",)),
        Purge(routes=("all",)),
        Purge(everything=True),
        Purge(tags=("one",), soft=True),
        Purge(everything=True, soft=True),
    ]:
        for node in nodes:
            await ask(node)
            assert (await ask(node)).cache == "HIT"
        purged = time.monotonic()
        await purge.execute(redis_client, "gateway")

        async def missed() -> bool:
            return (await ask(nodes[1])).cache != "HIT"

        await eventually(missed, within=1, every=0)
        took.append(time.monotonic() - purged)
    print("milliseconds from a purge to the first miss elsewhere:", [round(one * 1000, 1) for one in took])


async def test_what_is_purged_softly_is_revalidated(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, run: Callable[..., str]
) -> None:
    async def answer(request: web.Request) -> web.Response:
        same = request.headers.get("If-None-Match") == '"1"'
        headers = {"ETag": '"1"', "Cache-Control": "max-age=60", "Cache-Tag": "one"}
        return web.Response(status=304 if same else 200, text=None if same else "long", headers=headers)

    upstream.answer("/a", answer)
    nodes = [await gateway({"plugins": {"cache": {}}}) for _ in range(2)]
    await ask(nodes[0])
    assert (await asyncio.to_thread(run, "--tag", "one", "--soft")).startswith("Purged softly tag one")
    got = await ask(nodes[1])
    assert (got.body, got.cache) == (b"long", "REVALIDATED")
    assert "fwd-status=304" in got.why
    assert (await ask(nodes[0])).cache == "HIT"
    run("--tag", "one")
    assert "fwd-status=200" in (await ask(nodes[1])).why


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        ("max-age=60, stale-if-error=60", [200, 200]),
        ("max-age=60, must-revalidate", [500, 500]),
        ("max-age=60, stale-if-error=20", [200, 500]),
    ],
)
async def test_what_is_purged_softly_is_good_in_place_of_an_error(
    gateway: StartGateway,
    ask: Client,
    say: Say,
    clock: Clock,
    run: Callable[..., str],
    control: str,
    expected: list[int],
) -> None:
    """For as long after the purge as it would have been after its end."""
    say("/a", control)
    node = await gateway({"plugins": {"cache": {}}})
    await ask(node)
    run("--url", "http://api.test/a", "--soft")
    say("/a", status=500)
    clock.stand(node)
    statuses = []
    for _ in expected:
        statuses.append((await ask(node)).status)
        clock.pass_by(30)
    assert statuses == expected


async def test_a_soft_purge_does_not_bring_back_what_was_purged_hard(
    gateway: StartGateway, ask: Client, say: Say, run: Callable[..., str]
) -> None:
    say("/a", "max-age=60, stale-if-error=60", Cache_Tag="one")
    node = await gateway({"plugins": {"cache": {}}})
    for order in (["hard", "soft"], ["soft", "hard"]):
        say("/a", "max-age=60, stale-if-error=60", Cache_Tag="one")
        await ask(node)
        for kind in order:
            run("--tag", "one", *(["--soft"] if kind == "soft" else []))
        say("/a", status=500)
        assert (await ask(node)).status == 500


@pytest.mark.parametrize("arguments", [["--tag", "one"], ["--tag", "one", "--soft"], ["--url", "http://api.test/a"]])
async def test_a_full_redis_can_still_purge(
    gateway: StartGateway,
    redis_client: redis.asyncio.Redis,
    ask: Client,
    say: Say,
    run: Callable[..., str],
    arguments: list[str],
) -> None:
    say("/a", "max-age=60", Cache_Tag="one")
    node = await gateway({"plugins": {"cache": {}}})
    await ask(node)
    assert (await ask(node)).cache == "HIT"
    await redis_client.config_set("maxmemory", "1")
    try:
        run(*arguments)

        async def gone() -> bool:
            return (await ask(node)).cache != "HIT"

        # The worker shares the test's loop, which `run` has held up: what Redis pushed may wait behind a request.
        await eventually(gone)
    finally:
        await redis_client.config_set("maxmemory", "0")


async def test_generations_stay_small_and_keep_their_time_to_live(
    gateway: StartGateway, redis_client: redis.asyncio.Redis, ask: Client, say: Say
) -> None:
    say("/a", "max-age=60", Cache_Tag="one")
    node = await gateway({"plugins": {"cache": {}}})
    await ask(node)
    name = of_url("gateway", "api.test", "/a")
    before = await redis_client.pttl(name)
    purge = Purge((("api.test", "/a"), ("api.test", "/none")), tags=("one", "none"), everything=True, soft=True)
    values = set()
    for _ in range(20):
        await purge.execute(redis_client, "gateway")
        values.add(await redis_client.get(name))
    assert len(values) == 20
    assert 0 < await redis_client.pttl(name) <= before
    assert not await redis_client.exists(of_url("gateway", "api.test", "/none"))
    for key in await redis_client.keys("gateway:gen:*"):
        assert len(await redis_client.get(key)) <= 40
        assert await redis_client.pttl(key) > 0


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"urls": ["http://A.test/a?b#c"]}, Purge((("a.test", "/a?b"),))),
        ({"urls": ["/a", "http://b.test"], "host": "a.test"}, Purge((("a.test", "/a"), ("b.test", "/")))),
        ({"users": ["ada"], "soft": True}, Purge(users=("ada",), soft=True)),
        ({"tags": ["a b"], "routes": ["all"]}, Purge(tags=("a b",), routes=("all",))),
        ({"everything": True, "tags": []}, Purge(everything=True)),
    ],
)
def test_documents(document: Any, expected: Purge) -> None:
    assert Purge.parse(document, routes=["all"]) == expected


@pytest.mark.parametrize(
    ("document", "what"),
    [
        ([], "expected an object such as"),
        ({}, "say what to purge: urls, users, tags, routes or everything"),
        ({"soft": True}, "say what to purge"),
        ({"everything": False}, "say what to purge"),
        ({"url": ["/a"]}, "'url': unknown; known are urls, users, tags, routes, everything, soft, host"),
        ({"tags": "one"}, "tags: expected a list of texts"),
        ({"tags": [1]}, "tags: expected a list of texts"),
        ({"tags": [""]}, "none of them empty"),
        ({"users": ["x" * 9000]}, "longer than 8192 characters"),
        ({"everything": 1}, "everything: expected true or false"),
        ({"tags": ["a"], "soft": "yes"}, "soft: expected true or false"),
        ({"urls": ["/a"]}, "/a: which host?"),
        ({"urls": ["/a"], "host": 1}, "host: expected what clients send"),
        ({"urls": ["a.test/a"]}, "expected a URL such as"),
        ({"urls": ["http://[::1/a"]}, "expected a URL such as"),
        ({"routes": ["other"]}, "there is no route 'other'; the configuration has all"),
        ({"tags": ["a"] * (MAX_NAMED + 1)}, "more than 1000 things"),
    ],
    ids=str,
)
def test_what_no_document_may_say(document: Any, what: str) -> None:
    with pytest.raises(ValueError, match=re.escape(what)):
        Purge.parse(document, routes=["all"])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["urls", "users", "tags", "routes", "everything", "soft", "host", "x"]),
                inner,
                max_size=4,
            )
        ),
    )
)
def test_any_document_is_a_purge_or_told_what_is_wrong(document: Any) -> None:
    try:
        purge = Purge.parse(document)
    except ValueError as error:
        assert str(error)  # noqa: PT017
    else:
        assert purge.named()
        assert purge.commands("gateway")


def test_what_the_command_does_not_understand(run: Callable[..., str]) -> None:
    assert "say what to purge" in run(exit_code=1)
    assert "which host" in run("--url", "/a", exit_code=1)
    assert "there is no route 'other'; the configuration has all" in run("--route", "other", exit_code=1)


async def test_purged_answers_do_not_come_back_with_a_lost_generation(
    gateway: StartGateway, redis_client: redis.asyncio.Redis, ask: Client, say: Say, run: Callable[..., str]
) -> None:
    """A Redis that is short of memory evicts what it likes."""
    say("/a", "max-age=60", Cache_Tag="one")
    node = await gateway({"plugins": {"cache": {}}})
    await ask(node)
    entry = (await redis_client.keys("gateway:cache:*"))[0]
    kept = await redis_client.get(entry)
    run("--tag", "one")
    for name in await redis_client.keys("gateway:gen:*"):
        await redis_client.delete(name)
    await redis_client.set(entry, kept, px=60_000)
    assert (await ask(node)).body == b"/a 2"


async def test_a_tag_that_is_purged_while_its_answer_is_fetched_is_not_kept(
    gateway: StartGateway, ask: Client, say: Say, run: Callable[..., str], upstream: Any
) -> None:
    say("/a", "max-age=60", Cache_Tag="one", delay=0.2)
    node = await gateway({"plugins": {"cache": {}}})
    early = asyncio.ensure_future(ask(node))
    await eventually(lambda: upstream.count("/a") == 1)
    await asyncio.to_thread(run, "--tag", "one")
    assert "detail=purged" in (await early).why
    assert (await ask(node)).body == b"/a 2"
    assert (await ask(node)).cache == "HIT"


async def test_a_change_whose_client_has_left_is_seen(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say
) -> None:
    say("/a", "max-age=60")
    node, other = await gateway({"plugins": {"cache": {}}}), await gateway({"plugins": {"cache": {}}})
    await ask(node)
    say("/a", "max-age=60", delay=0.3)
    leaving = asyncio.ensure_future(ask(other, method="PUT"))
    await eventually(lambda: upstream.count("/a") == 2)
    leaving.cancel()

    async def purged() -> bool:
        return (await ask(node)).body != b"/a 1"

    await eventually(purged, within=2)


RULES = ["PUT /hard -> tag one", "PUT /soft -> soft tag one"]


@pytest.mark.parametrize("changed", ["/a", "/hard", "/soft"])
async def test_a_change_that_could_not_be_purged_is_purged_later(
    gateway: StartGateway, own_valkey: Valkey, ask: Client, say: Say, changed: str
) -> None:
    """A Redis that stands still for a moment must not make a changed page last for its whole life."""
    say("/a", "max-age=60", Cache_Tag="one")
    config: dict[str, Any] = {
        "redis": {"url": own_valkey.url, "timeout": 0.1},
        "plugins": {"cache": {"purge_rules": RULES}},
    }
    node = await gateway(config)
    plugin: Any = node.plugins["cache"]
    await ask(node)
    assert (await ask(node)).cache == "HIT"
    own_valkey.pause()
    plugin._store._redis._main.drop("lost")  # what is on its way is lost with it
    assert (await ask(node, changed, method="PUT")).status == 200
    own_valkey.resume()

    async def purged() -> bool:
        return (await ask(node)).cache == "HIT" and (await ask(node)).body != b"/a 1"

    await eventually(purged)


async def test_generations_of_made_up_urls_do_not_pile_up(
    gateway: StartGateway, redis_client: redis.asyncio.Redis, ask: Client, say: Say
) -> None:
    say("/short", "max-age=60")
    say("/none", "no-store")
    say("/long", "max-age=7200")
    node = await gateway({"plugins": {"cache": {"stale_if_error": 0}}})
    lives = {}
    for path in ("/short", "/none", "/long"):
        await ask(node, path)
        lives[path] = await redis_client.pttl(of_url("gateway", "api.test", path)) / 1000
    assert lives["/short"] <= 600
    assert lives["/none"] <= 600
    assert 7200 <= lives["/long"] <= 7800
    assert await redis_client.pttl("gateway:gen:all") / 1000 > 86400
