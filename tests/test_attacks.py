"""Attacks on the core that once worked."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from gateway.request import users_of
from plugins.session import Layout, create_session_async
from tests.conftest import StartGateway
from tests.harness import UpstreamServer, eventually, raw_exchange
from tests.requests import bare_request

KNOWN = b"GET /known HTTP/1.1\r\nHost: a\r\n\r\n"
MIRRORS = pytest.mark.parametrize("mirror", [64 << 20, 0], ids=["mirror", "no mirror"])
SECRET = "a secret that is long enough for HS256"


async def test_three_bytes_do_not_hide_the_beginning_of_a_request(
    gateway: StartGateway, upstream: UpstreamServer
) -> None:
    """`\\r\\nG` ends a head and begins the next request: what follows belongs to that one, known or not."""
    node = await gateway({})
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)

    async def say(data: bytes) -> bytes:
        writer.write(data)
        return await asyncio.wait_for(reader.read(65536), 5)

    for _ in range(3):
        assert b" 200 " in await say(KNOWN)
    assert len(node.worker.server.heads) == node.worker.server.short_way
    writer.write(b"GET /first HTTP/1.1\r\nHost: a\r\n")
    await asyncio.sleep(0.05)
    assert b" 200 " in await say(b"\r\nG")
    assert b" 400 " in await say(KNOWN)
    assert [request.target for request in upstream.requests][3:] == ["/first"]
    writer.close()


@MIRRORS
async def test_a_session_that_was_revoked_does_not_use_up_its_users_limit(
    gateway: StartGateway, upstream: UpstreamServer, http: aiohttp.ClientSession, redis_client: Any, mirror: int
) -> None:
    limit = {"limits": ["10/minute"], "by": "user"}
    node = await gateway({"redis": {"mirror": {"max_bytes": mirror}}, "plugins": {"session": {}, "rate_limit": limit}})
    layout = Layout("gateway")
    stolen = await create_session_async(redis_client, "alice")

    async def status(session: str) -> tuple[int, str | None]:
        async with http.get(node.url, headers={"Cookie": f"session={session}"}) as answer:
            return answer.status, answer.headers.get("X-RateLimit-Remaining")

    assert (await status(stolen))[0] == 200
    await redis_client.delete(layout.key(layout.stored(stolen)))
    await eventually(lambda: not len(node.worker.redis.mirror))
    assert [(await status(stolen))[0] for _ in range(12)] == [401] * 12
    # One for the first request, and at most one that was asked before Redis had told of the end.
    new, remaining = await status(await create_session_async(redis_client, "alice"))
    assert (new, remaining) in [(200, "7"), (200, "8")]


PLUGINS = """
from gateway.plugin import Plugin, Read, Response

class BadParse(Plugin):
    def ask(self, request, redis):
        return redis.look(Read("GET", "bad", parse=self.parse))
    def parse(self, value):
        raise AttributeError("oops")
    def check(self, request, reply):
        return None

class BadAnswer(Plugin):
    def ask(self, request, redis):
        return redis.ask("GET", "x")
    def check(self, request, reply):
        return {"not": "a response"}
"""


@pytest.mark.parametrize("name", ["BadParse", "BadAnswer"])
async def test_a_plugins_mistake_leaves_no_client_waiting(
    gateway: StartGateway, upstream: UpstreamServer, tmp_path: Path, name: str
) -> None:
    (tmp_path / "custom.py").write_text(PLUGINS)
    node = await gateway({"plugins": {"mine": {"use": f"custom:{name}"}}}, folder=tmp_path)
    for _ in range(2):
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(KNOWN)
        answer = await asyncio.wait_for(reader.read(65536), 5)
        assert answer.startswith(b"HTTP/1.1 200") if name == "BadParse" else not answer.startswith(b"HTTP/1.1 200")
        writer.close()
    await eventually(lambda: not node.worker.server.in_flight)


async def test_a_client_that_takes_nothing_is_cut_off_with_what_waits_for_it(
    gateway: StartGateway, upstream: UpstreamServer
) -> None:
    big = "x" * (8 << 20)

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=big, headers={"Cache-Control": "max-age=60"})

    upstream.answer("/big", answer)
    node = await gateway({"server": {"send_timeout": 0.3}, "plugins": {"cache": {"max_body": 32 << 20}}})
    await raw_exchange(node.port, b"GET /big HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", within=5)
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", node.port))
        await loop.sock_sendall(client, b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
        await eventually(lambda: node.worker.server.connections)
        await eventually(lambda: not node.worker.server.connections)


@MIRRORS
async def test_who_has_a_foisted_session_is_not_answered_later_with_what_was_made_for_its_owner(
    gateway: StartGateway, upstream: UpstreamServer, http: aiohttp.ClientSession, redis_client: Any, mirror: int
) -> None:
    """Alice's token came with Mallory's session: what the upstream made for Mallory is not Alice's."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(
            {"user": request.headers["X-User-Id"]}, headers={"Cache-Control": "private, max-age=60"}
        )

    upstream.answer("/a", answer)
    plugins = {"session": {}, "token_blacklist": {"secret": SECRET}, "cache": {}}
    node = await gateway({"redis": {"mirror": {"max_bytes": mirror}}, "plugins": plugins})
    token = jwt.encode({"sub": "alice", "jti": "1"}, SECRET)
    sessions = [await create_session_async(redis_client, user) for user in ("mallory", "alice")]
    found = []
    for session in [*sessions, *sessions]:
        headers = {"Cookie": f"session={session}", "Authorization": f"Bearer {token}"}
        async with http.get(node.url + "/a", headers=headers) as got:
            found.append(((await got.json())["user"], got.headers["X-Cache"]))
    assert found == [("mallory", "MISS"), ("alice", "MISS"), ("mallory", "HIT"), ("alice", "HIT")]


@given(st.lists(st.text("&:1ab\0", min_size=1, max_size=4), min_size=1, max_size=4))
def test_an_identity_is_of_just_the_users_that_were_named(users: list[str]) -> None:
    request = bare_request()
    for user in users:
        request.speaks_for(user)
    assert request.user == users[-1]
    assert request.identity is not None
    assert sorted(users_of(request.identity)) == sorted(set(users))
    before = request.identity
    for user in reversed(users):
        request.speaks_for(user)
    assert request.identity == before


@pytest.mark.parametrize(
    "identity", ["&x", "&", "&1", "&1:", "&9:a", "&\u00b2:ab", "&-1:a", "&" + "9" * 5000 + ":a", "ada"]
)
def test_an_identity_that_only_looks_like_several_is_one(identity: str) -> None:
    assert users_of(identity) == [identity]


@given(st.text("&:12ab", max_size=12))
def test_any_identity_can_be_asked_for_its_users(identity: str) -> None:
    assert len(users_of(identity)) > 0
