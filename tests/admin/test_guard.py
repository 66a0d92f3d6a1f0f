"""Who may use the admin listener, and from where."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from gateway.admin import plugins as admin_plugins
from gateway.admin.app import Admin
from gateway.admin.guard import has_token, is_address, is_loopback
from gateway.config import Config
from gateway.listen import Listeners
from tests.admin.test_app import Supervised
from tests.harness import Valkey

TOKEN = "a token, long enough"
JSON = {"Content-Type": "application/json"}
PURGE = json.dumps({"tags": ["news"]})


async def started(listen: str = "127.0.0.1:0", **tables: Any) -> Admin:
    admin = Admin(Supervised([], config=Config.model_validate(tables)))
    await admin.start(Listeners(listen, key="admin.listen"))
    return admin


Ask = Callable[..., Awaitable[tuple[int, Any]]]


@pytest.fixture
async def admin(redis_url: str) -> AsyncIterator[Admin]:
    admin = await started(redis={"url": redis_url})
    yield admin
    await admin.stop()


@pytest.fixture
async def closed(redis_url: str) -> AsyncIterator[Admin]:
    """One that needs a token."""
    admin = await started(redis={"url": redis_url}, admin={"token": TOKEN})
    yield admin
    await admin.stop()


async def ask(admin: Admin, path: str, method: str = "GET", data: Any = None, **headers: str) -> tuple[int, Any]:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        aiohttp.ClientSession(skip_auto_headers=["Content-Type"]) as session,
        session.request(method, f"{admin.url}/_gateway/{path}", data=data, headers=fields) as answer,
    ):
        assert answer.headers["Cache-Control"] == "no-store"
        return answer.status, await answer.json(content_type=None) if "json" in answer.content_type else None


# -- the token -----------------------------------------------------------------------------------


async def test_with_a_token_all_but_health_needs_it(closed: Admin) -> None:
    assert (await ask(closed, "health"))[0] == 200
    for path in ("metrics", "cache/hot", "cache/stats", "cache/explain", "nothing"):
        status, problem = await ask(closed, path)
        assert (status, problem["title"]) == (401, "Unauthorized")
    assert (await ask(closed, "cache/purge", "POST", PURGE, **JSON))[0] == 401
    given = {"Authorization": f"Bearer {TOKEN}"}
    assert (await ask(closed, "metrics", **given))[0] == 200
    assert (await ask(closed, "cache/hot", **given))[0] == 200
    assert (await ask(closed, "cache/purge", "POST", PURGE, **JSON, **given))[0] == 200


@pytest.mark.parametrize(
    "field", ["", "Bearer", "Bearer ", "Bearer wrong", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer \xff"]
)
async def test_what_is_not_the_token(closed: Admin, field: str) -> None:
    assert (await ask(closed, "cache/hot", Authorization=field))[0] == 401
    assert not has_token(field, TOKEN)


def test_the_scheme_has_no_case() -> None:
    assert has_token(f"bearer {TOKEN}", TOKEN)
    assert has_token(f"BEARER  {TOKEN}", TOKEN)
    assert has_token("Bearer ünïcödé", "ünïcödé")


async def test_the_token_is_never_shown(closed: Admin, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await ask(closed, "cache/hot", Authorization=f"Bearer {TOKEN}")
    await ask(closed, "cache/hot")
    assert TOKEN not in caplog.text
    assert TOKEN not in repr(closed._node.config) + json.dumps(closed._node.config.model_dump(mode="json"))


async def test_a_listener_for_others_without_a_token_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for listen, token, warned in (
        ("0.0.0.0:0", "", True),
        ("0.0.0.0:0", TOKEN, False),
        ("127.0.0.1:0", "", False),
        ("localhost:0", "", False),
    ):
        caplog.clear()
        admin = await started(listen, admin={"token": token})
        await admin.stop()
        assert ("set admin.token" in caplog.text) is warned, listen


# -- browsers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
async def test_what_forms_can_send_changes_nothing(admin: Admin, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    status, problem = await ask(admin, "cache/purge", "POST", PURGE.encode(), **headers)
    assert (status, problem["title"]) == (415, "Unsupported media type")
    assert (await ask(admin, "cache/purge", "POST", PURGE, **JSON))[0] == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.test", "null", "https://{host}", "http://{host}.evil.test", "http://127.0.0.1"]
)
async def test_pages_of_other_sites_are_refused(admin: Admin, origin: str) -> None:
    field = origin.format(host=admin.url.removeprefix("http://"))
    for path in ("cache/hot", "metrics"):
        assert (await ask(admin, path, Origin=field))[0] == 403
    assert (await ask(admin, "cache/purge", "POST", PURGE, Origin=field, **JSON))[0] == 403
    assert (await ask(admin, "cache/purge", "OPTIONS", Origin=field, **JSON))[0] == 403


async def test_its_own_pages_may_ask(admin: Admin) -> None:
    assert (await ask(admin, "cache/hot", Origin=admin.url))[0] == 200
    port = admin.url.rpartition(":")[2]
    assert (await ask(admin, "cache/hot", Host=f"localhost:{port}", Origin=f"http://localhost:{port}"))[0] == 200


async def test_a_name_that_was_made_to_point_here_is_refused(admin: Admin) -> None:
    """DNS rebinding: for the browser it is the same site."""
    assert (await ask(admin, "cache/hot", Host="evil.test"))[0] == 403
    field = {"Host": "evil.test", "Origin": "http://evil.test"}
    assert (await ask(admin, "cache/purge", "POST", PURGE, **field, **JSON))[0] == 403


async def test_with_a_token_any_name_may_be_asked_by(closed: Admin) -> None:
    field = {"Host": "gateway.example", "Authorization": f"Bearer {TOKEN}"}
    assert (await ask(closed, "cache/hot", **field))[0] == 200
    assert (await ask(closed, "cache/hot", Origin="http://gateway.example", **field))[0] == 403


async def test_a_listener_for_others_may_have_names_but_not_for_browsers(redis_url: str) -> None:
    admin = await started("0.0.0.0:0", redis={"url": redis_url})
    try:
        assert (await ask(admin, "cache/hot", Host="gateway.internal:9090"))[0] == 200
        field = {"Host": "evil.test", "Origin": "http://evil.test"}
        assert (await ask(admin, "cache/hot", **field))[0] == 403
    finally:
        await admin.stop()


def test_what_is_an_address() -> None:
    for name in ("127.0.0.1", "127.0.0.1:9090", "[::1]:9090", "localhost", "LOCALHOST:80", "10.0.0.1"):
        assert is_address(name), name
    for name in ("", "evil.test", "127.0.0.1.evil.test", "localhost.evil.test:80", "[evil]", "::1"):
        assert not is_address(name), name
    assert is_loopback("127.8.9.1")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("::")


# -- what is sent --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "told"),
    [(b"", "no JSON"), (b"{", "no JSON"), (b"[]", "no object"), (b'"a"', "no object"), (b"\xff", "no JSON")],
)
async def test_a_body_that_is_no_object(admin: Admin, body: bytes, told: str) -> None:
    status, problem = await ask(admin, "cache/purge", "POST", body, **JSON)
    assert status == 400
    assert told in problem["detail"]


async def test_bodies_are_bounded(admin: Admin) -> None:
    fitting = PURGE.encode().ljust(admin_plugins.MAX_BODY)
    assert (await ask(admin, "cache/purge", "POST", fitting, **JSON))[0] == 200
    assert (await ask(admin, "cache/purge", "POST", fitting + b" ", **JSON))[0] == 413


async def test_a_body_that_does_not_come_is_not_waited_for(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_plugins, "BODY_SECONDS", 0.1)
    release = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"{"
        await release.wait()

    status, _ = await ask(admin, "cache/purge", "POST", slowly(), **JSON)
    assert status == 408
    release.set()


# -- Redis ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["gone", "silent"])
async def test_redis_is_away(own_valkey: Valkey, how: str) -> None:
    admin = await started(redis={"url": own_valkey.url})
    try:
        assert (await ask(admin, "cache/hot"))[0] == 200
        own_valkey.kill() if how == "gone" else own_valkey.pause()
        for path, method, body in (("cache/hot", "GET", None), ("cache/purge", "POST", PURGE)):
            began = time.monotonic()
            status, problem = await ask(admin, path, method, body, **(JSON if body else {}))
            assert (status, problem["title"]) == (503, "Redis cannot be reached")
            assert time.monotonic() - began < admin_plugins.REDIS_SECONDS + 1
        if how == "silent":
            own_valkey.resume()
            assert (await ask(admin, "cache/hot"))[0] == 200
    finally:
        await admin.stop()


async def test_the_embedded_server_is_not_running(tmp_path: Any) -> None:
    admin = await started(redis={"url": "embedded", "state_dir": str(tmp_path)})
    try:
        assert (await ask(admin, "cache/hot"))[0] == 503
        assert (await ask(admin, "health"))[0] == 200
    finally:
        await admin.stop()


async def test_another_redis_after_a_reload(admin: Admin, own_valkey: Valkey) -> None:
    async with aiohttp.ClientSession() as session:
        for url, keys in ((None, 0), (own_valkey.url, 1)):
            if url is not None:
                admin._node.config = Config.model_validate({"redis": {"url": url}})
                await (await admin._redis.get(admin._node.config.redis)).set("gateway:lock:x", "owner")
            async with session.get(f"{admin.url}/_gateway/cache/stats") as answer:
                assert (await answer.json())["keys"] == keys


async def test_only_so_many_at_once(own_valkey: Valkey) -> None:
    admin = await started(redis={"url": own_valkey.url})
    try:
        own_valkey.pause()
        asked = [ask(admin, "cache/hot") for _ in range(admin_plugins.MAX_AT_ONCE + 3)]
        titles = sorted(problem["title"] for _, problem in await asyncio.gather(*asked))
        assert titles == ["Redis cannot be reached"] * admin_plugins.MAX_AT_ONCE + ["Too many at once"] * 3
        assert (await ask(admin, "health"))[0] == 200
        own_valkey.resume()
        assert (await ask(admin, "cache/hot"))[0] == 200
    finally:
        await admin.stop()
