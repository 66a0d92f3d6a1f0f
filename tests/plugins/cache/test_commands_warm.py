"""`gateway cache warm`, through real gateways."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from plugins.cache.commands.warm import FAILED, HIT, NOT_CACHEABLE, STORED, Plan, ask_all, read_urls, result_of
from tests.conftest import StartGateway
from tests.harness import Gateway, UpstreamServer, free_port
from tests.plugins.cache.conftest import Client
from tests.plugins.cache.console import command, write_config

Say = Callable[..., None]


@pytest.fixture
def config(tmp_path: Path, redis_url: str, upstream: UpstreamServer) -> Path:
    return write_config(tmp_path, redis_url, upstream.url)


@pytest.fixture
async def node(gateway: StartGateway, config: Path) -> Gateway:
    return await gateway(tomllib.loads(config.read_text()))


def urls(config: Path, *lines: str) -> str:
    path = config.parent / "urls.txt"
    path.write_text("\n".join(lines))
    return str(path)


async def test_what_was_warmed_is_a_hit_for_the_first_client(
    node: Gateway, config: Path, upstream: UpstreamServer, ask: Client, say: Say
) -> None:
    say("/a", "max-age=60")
    say("/b", "no-store")
    file = urls(
        config, "# the start page", "http://api.test/a?b=%2F", "", "http://api.test/b", "http://api.test/plain/c"
    )
    done = await command(config, "warm", "--file", file, "--via", node.url, "--json")
    assert (done.code, done.err) == (0, "")
    told = done.json()
    assert (told["stored"], told["hit"], told["not_cacheable"], told["failed"]) == (1, 0, 2, 0)
    assert {line["reason"] for line in told["reasons"]} == {"no-store", "no cache in the route's chain"}
    assert {request.target for request in upstream.requests} == {"/a?b=%2F", "/b", "/plain/c"}  # several at once
    assert {request.headers["Host"] for request in upstream.requests} == {"api.test"}
    again = await command(config, "warm", "--file", file, "--via", node.url)
    assert again.code == 0
    assert [line.split()[:2] for line in again.out.splitlines()[1:3]] == [["stored", "0"], ["hit", "1"]]
    assert upstream.count("/a") == 1
    assert (await ask(node, "/a?b=/")).cache == "MISS", "another URL"


async def test_variants_and_users_are_warmed_by_what_they_send(
    node: Gateway, config: Path, upstream: UpstreamServer, ask: Client, say: Say
) -> None:
    say("/a", "max-age=60", Vary="Accept-Language")
    file = urls(config, "http://api.test/a")
    fields = ("-H", "Accept-Language: de", "-H", "Cookie: session=ada")
    assert (await command(config, "warm", "--file", file, "--via", node.url, *fields)).code == 0
    headers = {"Accept-Language": "de", "Cookie": "session=ada"}
    assert (await ask(node, "/a", headers=headers)).cache == "HIT"
    assert (await ask(node, "/a", headers={**headers, "Cookie": "session=bob"})).cache == "MISS"
    assert (await ask(node, "/a", headers={**headers, "Accept-Language": "fr"})).cache == "MISS"


async def test_a_user_alone_is_not_enough(node: Gateway, config: Path, upstream: UpstreamServer) -> None:
    file = urls(config, "http://api.test/a")
    done = await command(config, "warm", "--file", file, "--via", node.url, "--as-user", "ada")
    assert done.code == 1
    assert "give it with -H" in done.err
    assert upstream.requests == []


async def test_failures_are_told_and_are_the_exit_code(
    node: Gateway, config: Path, upstream: UpstreamServer, say: Say
) -> None:
    say("/a", "max-age=60")
    say("/gone", None, status=404)
    say("/slow", "max-age=60", delay=5)
    file = urls(config, "http://api.test/gone", "http://api.test/a", "http://api.test/slow")
    done = await command(config, "warm", "--file", file, "--via", node.url, "--timeout", "0.3")
    assert done.code == 1
    assert "failed: http://api.test/gone: status 404" in done.out
    assert "failed: http://api.test/slow: no answer within 0.3 s" in done.out
    assert [line.split()[:2] for line in done.out.splitlines()[1:2]] == [["stored", "1"]]


async def test_it_needs_no_redis(gateway: StartGateway, tmp_path: Path, upstream: UpstreamServer, say: Say) -> None:
    """It may run where only the gateway can be reached."""
    say("/a", "max-age=60")
    config = write_config(tmp_path, "redis://127.0.0.1:1", upstream.url)
    node = await gateway({"plugins": {"cache": {}}})
    done = await command(config, "warm", "--file", urls(config, "http://api.test/a"), "--via", node.url, "--json")
    assert (done.code, done.json()["stored"]) == (0, 1)


async def test_nobody_is_there(config: Path) -> None:
    file = urls(config, "http://api.test/a")
    via = f"http://127.0.0.1:{free_port()}"
    done = await command(config, "warm", "--file", file, "--via", via)
    assert done.code == 1
    assert f"nothing answers at {via}" in done.out


@pytest.mark.parametrize(
    ("line", "arguments", "told"),
    [
        ("/a", (), "line 1: expected a URL"),
        ("http://user:letmein@api.test/a", (), "line 1: expected a URL"),
        ("http://api.test/ü", (), "line 1: expected a URL"),
        ("https://api.test/a", (), "server.trusted_proxies is empty"),
        ("", (), "there is no URL in it"),
        ("http://api.test/a", ("-H", "Cookie letmein"), "-H number 1"),
        ("http://api.test/a", ("--via", "127.0.0.1:80"), "expected the gateway's URL"),
        ("http://api.test/a", ("--via", "http://h/path"), "expected the gateway's URL"),
    ],
)
async def test_what_is_wrong_is_one_line_and_nothing_is_asked(
    config: Path, line: str, arguments: tuple[str, ...], told: str
) -> None:
    done = await command(config, "warm", "--file", urls(config, line), *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert told in done.err
    assert "letmein" not in done.err


async def test_a_file_that_is_not_there(config: Path) -> None:
    assert (await command(config, "warm", "--file", "nothing.txt")).code == 2


async def test_at_most_so_many_at_once_and_a_second(node: Gateway, config: Path, upstream: UpstreamServer) -> None:
    now = most = 0
    times: list[float] = []

    async def answer(request: web.Request) -> web.Response:
        nonlocal now, most
        times.append(asyncio.get_running_loop().time())
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        return web.Response(headers={"Cache-Control": "max-age=60"})

    for number in range(40):
        upstream.answer(f"/{number}", answer)
    wanted = list(read_urls([f"http://api.test/{number}" for number in range(40)], lambda _: None))
    done: list[None] = []
    summary = await ask_all(wanted, Plan(node.url, (), 10_000, 3, 5), lambda: done.append(None))
    assert most == 3
    assert (summary.results[STORED], len(done)) == (40, 40)
    times.clear()
    wanted = list(read_urls([f"http://api.test/{number}?again" for number in range(20)], lambda _: None))
    await ask_all(wanted, Plan(node.url, (), 100, 8, 5), lambda: None)
    assert times[-1] - times[0] >= 0.17, "20 at 100 a second"


@pytest.mark.parametrize(
    ("status", "said", "result"),
    [
        (200, ["gateway; hit; ttl=5"], (HIT, "")),
        (200, ["cdn; hit", "gateway; fwd=uri-miss; fwd-status=200; stored"], (STORED, "")),
        (200, ["cdn; hit, gateway; fwd=uri-miss; fwd-status=200; detail=private"], (NOT_CACHEABLE, "private")),
        (200, ["gateway; fwd=uri-miss; collapsed"], (STORED, "")),
        (200, ["gateway; fwd=method"], (NOT_CACHEABLE, "method")),
        (200, ["cdn; hit"], (NOT_CACHEABLE, "no cache in the route's chain")),
        (404, ["gateway; fwd=uri-miss; fwd-status=404; stored"], (STORED, "")),
        (404, ["gateway; fwd=uri-miss; fwd-status=404; detail=status"], (FAILED, "status 404")),
        (429, [], (FAILED, "status 429, a rate limit: see --rate")),
        (503, [], (FAILED, "status 503")),
    ],
)
def test_what_an_answer_tells(status: int, said: list[str], result: Any) -> None:
    assert result_of(status, said) == result


@given(st.integers(100, 599), st.lists(st.text(max_size=50), max_size=3))
def test_whatever_an_upstream_says_is_one_of_four(status: int, said: list[str]) -> None:
    assert result_of(status, said)[0] in (STORED, HIT, NOT_CACHEABLE, FAILED)
