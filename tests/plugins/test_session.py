from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict
from pydantic import ValidationError
from typer.testing import CliRunner

from gateway.console import settings
from gateway.plugin import Known
from gateway.store import Redis
from gateway.store.link import LinkOptions
from plugins.session import Layout, Session, create_session, create_session_async
from plugins.session import sessions as module
from plugins.session.commands import commands, revoke_session, revoke_user, shown, span
from plugins.session.sessions import CREATE, TOUCH, format_time, index_args, parse_time
from tests.harness import eventually
from tests.requests import bare_request

DAY = 24 * 3600
LAYOUT = Layout("gateway")


def with_session(**keys: Any) -> dict[str, Any]:
    return {"plugins": {"session": keys}}


def cookie(session_id: str) -> dict[str, str]:
    return {"Cookie": f"theme=dark; session={session_id}"}


async def write(client: Any, session_id: str, **fields: Any) -> str:
    """A session as another application would write it; its key."""
    key = LAYOUT.key(LAYOUT.stored(session_id))
    await client.hset(key, mapping=fields)
    await client.expire(key, DAY)
    return key


@pytest.fixture
def plugin() -> Session:
    return Session(Session.Config(), "session")


@pytest.fixture
def sync_client(redis_url: str) -> Any:
    client = redis.Redis.from_url(redis_url)
    yield client
    client.close()


# -- who gets in -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "header"),
    [
        ("cookie", ("Cookie", "a=b; session={}")),
        ("bearer", ("Authorization", "bearer {}")),
        ("header", ("X-Sid", "{}")),
    ],
)
async def test_lets_a_session_in_and_names_its_user(gateway, upstream, http, redis_client, source, header):
    gw = await gateway(with_session(sources=[source], header="X-Sid"))
    session = await create_session_async(redis_client, "alice")
    async with http.get(gw.url, headers={header[0]: header[1].format(session)}) as response:
        assert response.status == 200
    assert upstream.requests[-1].headers["X-User-Id"] == "alice"


async def test_refuses_who_has_none(gateway, upstream, http):
    gw = await gateway(with_session(realm="shop"))
    async with http.get(gw.url) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == 'Bearer realm="shop"'
        assert response.content_type == "application/problem+json"
        assert json.loads(await response.read())["title"] == "Session required"
    async with http.get(gw.url, headers=cookie("made-up")) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == 'Bearer realm="shop", error="invalid_token"'
    assert upstream.requests == []


@pytest.mark.parametrize("session_id", ["x" * 513, 'a"b', "a,b", "a b", "\xe9", "a\\b"])
async def test_does_not_ask_redis_for_what_cannot_be_an_id(gateway, http, session_id):
    gw = await gateway(with_session(sources=["header"], header="X-Sid"))
    asked = gw.worker.redis.asked
    async with http.get(gw.url, headers={"X-Sid": session_id}) as response:
        assert response.status == 401
        assert 'error="invalid_token"' in response.headers["WWW-Authenticate"]
    assert gw.worker.redis.asked == asked


async def test_lets_anonymous_requests_pass_if_it_may(gateway, upstream, http):
    gw = await gateway(with_session(required=False))
    for headers in ({}, cookie("made-up"), cookie("x" * 600)):
        async with http.get(gw.url, headers=headers) as response:
            assert response.status == 200
        assert "X-User-Id" not in upstream.requests[-1].headers


async def test_a_session_ends_when_it_says_so_though_its_key_is_there(gateway, http, redis_client):
    gw = await gateway(with_session())
    session = await create_session_async(redis_client, "alice")
    for later, status in ((0, 200), (DAY - 5, 200), (3 * DAY, 401)):
        gw.plugins["session"].clock = lambda later=later: time.time() + later
        async with http.get(gw.url, headers=cookie(session)) as response:
            assert response.status == status, later


@pytest.mark.parametrize(
    "end", [lambda t: str(int(t)), lambda t: str(int(t * 1000)), lambda t: datetime.fromtimestamp(t, UTC).isoformat()]
)
async def test_understands_the_ends_that_applications_write(gateway, http, redis_client, end):
    gw = await gateway(with_session())
    await write(redis_client, "live", userId="alice", expiresAt=end(time.time() + 100))
    await write(redis_client, "over", userId="alice", expiresAt=end(time.time() - 100))
    for session_id, status in (("live", 200), ("over", 401)):
        async with http.get(gw.url, headers=cookie(session_id)) as response:
            assert response.status == status


async def test_shares_the_keys_of_an_application(gateway, upstream, http, redis_client):
    gw = await gateway(with_session(key="shop:sess:{id}", hash_ids=False, user_field="uid", expires_field="exp"))
    await redis_client.hset("shop:sess:abc", mapping={"uid": "bob", "exp": str(time.time() + 1000)})
    async with http.get(gw.url, headers=cookie("abc")) as response:
        assert response.status == 200
    assert upstream.requests[-1].headers["X-User-Id"] == "bob"


@pytest.mark.parametrize(
    "content",
    [
        "a string",
        {"userId": "alice"},
        {"expiresAt": "99999999999"},
        {"userId": "", "expiresAt": "99999999999"},
        {"userId": "x" * 300, "expiresAt": "99999999999"},
        {"userId": "alice", "expiresAt": "tomorrow"},
        {"userId": b"\xff\xfe", "expiresAt": "99999999999"},
    ],
)
async def test_garbage_in_redis_is_no_session(gateway, http, redis_client, content):
    gw = await gateway(with_session())
    key = LAYOUT.key(LAYOUT.stored("abc"))
    await (redis_client.set(key, content) if isinstance(content, str) else redis_client.hset(key, mapping=content))
    async with http.get(gw.url, headers=cookie("abc")) as response:
        assert response.status == 401


# -- no end in the hash ------------------------------------------------------------------------

AS_LONG_AS_ITS_KEY = {"key": "session:{id}", "hash_ids": False, "expires_field": "", "sliding": False}
MIRROR = pytest.mark.parametrize("mirror", ["64 MiB", 0])


async def status_of(http: Any, gw: Any, session_id: str = "abc") -> int:
    async with http.get(gw.url, headers=cookie(session_id)) as response:
        return response.status


@MIRROR
async def test_without_an_end_a_session_lasts_as_long_as_its_key(gateway, upstream, http, redis_client, mirror):
    gw = await gateway({"redis": {"mirror": {"max_bytes": mirror}}, **with_session(**AS_LONG_AS_ITS_KEY)})
    await redis_client.hset("session:for-ever", mapping={"userId": "alice"})
    await redis_client.hset("session:short", mapping={"userId": "bob"})
    await redis_client.pexpire("session:short", 300)
    for session_id, user in (("for-ever", "alice"), ("short", "bob")):
        assert await status_of(http, gw, session_id) == 200
        assert upstream.requests[-1].headers["X-User-Id"] == user

    async def over() -> bool:
        return await status_of(http, gw, "short") == 401

    await eventually(over, within=2)
    assert await status_of(http, gw, "for-ever") == 200
    assert await redis_client.ttl("session:for-ever") == -1


async def test_what_is_kept_ends_with_its_key_before_redis_says_so(gateway, http, redis_client):
    gw = await gateway(with_session(**AS_LONG_AS_ITS_KEY))
    start = time.time()
    gw.plugins["session"].clock = lambda: start
    await redis_client.hset("session:abc", mapping={"userId": "alice"})
    await redis_client.expire("session:abc", 100)
    assert await status_of(http, gw) == 200
    asked = gw.worker.redis.asked
    for later, status in ((0, 200), (98, 200), (100.001, 401), (98, 200)):
        gw.plugins["session"].clock = lambda later=later: start + later
        assert await status_of(http, gw) == status, later
    assert gw.worker.redis.asked == asked, "all from memory"
    assert 98 <= await redis_client.ttl("session:abc") <= 100, "the gateway leaves it alone"


async def test_a_ttl_that_the_application_moves_counts_at_once(gateway, http, redis_client):
    gw = await gateway(with_session(**AS_LONG_AS_ITS_KEY))
    start = time.time()
    await redis_client.hset("session:abc", mapping={"userId": "alice"})
    await redis_client.expire("session:abc", 100)

    async def lasts(seconds: float) -> bool:
        gw.plugins["session"].clock = time.time
        alive = await status_of(http, gw) == 200
        gw.plugins["session"].clock = lambda: start + seconds
        return alive and await status_of(http, gw) == 200

    assert await lasts(90)
    assert not await lasts(110)
    for command, alive_after in (("EXPIRE session:abc 200", 190), ("PERSIST session:abc", 10 * DAY)):
        await redis_client.execute_command(*command.split())
        await eventually(lambda alive_after=alive_after: lasts(alive_after), within=1)
    await redis_client.expire("session:abc", 50)

    async def is_cut() -> bool:
        return not await lasts(60)

    await eventually(is_cut, within=1)


@MIRROR
async def test_the_end_of_a_key_costs_no_trip_of_its_own(gateway, http, redis_client, mirror):
    gw = await gateway({"redis": {"mirror": {"max_bytes": mirror}}, **with_session(**AS_LONG_AS_ITS_KEY)})
    await redis_client.hset("session:abc", mapping={"userId": "alice"})
    # A script that Redis has forgotten does no harm either.
    await redis_client.script_flush()
    writes = gw.worker.redis.links[0].writes
    assert await status_of(http, gw) == 200
    assert gw.worker.redis.links[0].writes == writes + 1
    assert await status_of(http, gw) == 200
    assert gw.worker.redis.links[0].writes == writes + (1 if mirror else 2)
    # An absent one is kept too, and Redis says when it comes.
    assert await status_of(http, gw, "new") == 401
    await redis_client.hset("session:new", mapping={"userId": "bob"})

    async def there() -> bool:
        return await status_of(http, gw, "new") == 200

    await eventually(there, within=1)


@MIRROR
@pytest.mark.parametrize("content", ["a string", {"user": "alice"}, {"userId": ""}, {"userId": b"\xff"}])
async def test_garbage_is_no_session_without_an_end_either(gateway, http, redis_client, mirror, content):
    gw = await gateway({"redis": {"mirror": {"max_bytes": mirror}}, **with_session(**AS_LONG_AS_ITS_KEY)})
    write = redis_client.set if isinstance(content, str) else redis_client.hset
    await (write("session:abc", content) if isinstance(content, str) else write("session:abc", mapping=content))
    assert await status_of(http, gw) == 401


# -- what the upstream learns ------------------------------------------------------------------

SPOOFED = [("X-User-Id", "root"), ("x_user_id", "root"), ("X-User_Id", "root"), ("X-User-Email", "root@x")]


def told(upstream: Any) -> list[tuple[bytes, bytes]]:
    """What the upstream got about the user, in whatever spelling."""
    lines = [(name.lower().replace(b"_", b"-"), value) for name, value in upstream.requests[-1].raw_headers]
    return sorted(line for line in lines if line[0].startswith(b"x-user"))


async def test_nobody_names_a_user_from_outside(gateway, upstream, http, redis_client):
    gw = await gateway(with_session(required=False, pass_fields={"email": "X-User-Email"}))
    async with http.get(gw.url, headers=SPOOFED) as response:
        assert response.status == 200
    assert told(upstream) == []
    session = await create_session_async(redis_client, "alice", fields={"email": "alice@example.com"})
    async with http.get(gw.url, headers=[*SPOOFED, *cookie(session).items()]) as response:
        assert response.status == 200
    assert told(upstream) == [(b"x-user-email", b"alice@example.com"), (b"x-user-id", b"alice")]


async def test_nobody_names_a_user_while_redis_is_down(gateway, upstream, http, own_valkey):
    table = {"session": {"on_redis_failure": "pass"}}
    gw = await gateway({"redis": {"url": own_valkey.url}, "plugins": table})
    own_valkey.kill()
    await eventually(lambda: not gw.worker.redis.up)
    async with http.get(gw.url, headers=[*SPOOFED, *cookie("abc").items()]) as response:
        assert response.status == 200
    assert [name for name, _ in told(upstream)] == [b"x-user-email"], "which is not this plugin's here"


async def test_refuses_by_default_while_redis_is_down(gateway, upstream, http, own_valkey):
    gw = await gateway({"redis": {"url": own_valkey.url}, **with_session()})
    own_valkey.kill()
    await eventually(lambda: not gw.worker.redis.up)
    async with http.get(gw.url, headers=cookie("abc")) as response:
        assert response.status == 503
        assert "Retry-After" in response.headers
    assert upstream.requests == []


async def get(http, gw, session):
    async with http.get(gw.url, headers=cookie(session)) as response:
        return response.status


@pytest.mark.parametrize("expires_field", ["expiresAt", ""])
async def test_known_sessions_may_go_on_without_redis_for_a_while(gateway, upstream, http, own_valkey, expires_field):
    keys = {"expires_field": expires_field, "sliding": bool(expires_field), "on_redis_failure": "local"}
    gw = await gateway({"redis": {"url": own_valkey.url}, **with_session(local_seconds=0.6, **keys)})
    client = redis.Redis.from_url(own_valkey.url)
    layout = Layout("gateway", expires_field=expires_field)
    known, revoked, other = (create_session(client, name, layout=layout) for name in ("alice", "bob", "carol"))
    assert [await get(http, gw, session) for session in (known, revoked)] == [200, 200]
    client.unlink(layout.key(layout.stored(revoked)))
    client.close()
    await eventually(lambda: gw.worker.redis.mirror.invalidations > 1)
    own_valkey.kill()
    await eventually(lambda: not gw.worker.redis.up)
    assert await get(http, gw, known) == 200
    assert told(upstream) == [(b"x-user-id", b"alice")]
    assert await get(http, gw, revoked) == 503, "what Redis withdrew before it went is not believed"
    assert await get(http, gw, other) == 503, "nobody here has seen it"

    async def over():
        return await get(http, gw, known) == 503

    await eventually(over)
    own_valkey.start()
    await eventually(lambda: gw.worker.redis.up)
    assert await get(http, gw, known) == 401, "Redis is back, and has lost it"


async def test_a_session_that_ends_during_the_outage_ends(gateway, http, own_valkey):
    gw = await gateway({"redis": {"url": own_valkey.url}, **with_session(on_redis_failure="local")})
    client = redis.Redis.from_url(own_valkey.url)
    session = create_session(client, "alice", ttl=DAY)
    client.close()
    assert await get(http, gw, session) == 200
    own_valkey.kill()
    await eventually(lambda: not gw.worker.redis.up)
    assert await get(http, gw, session) == 200
    gw.plugins["session"].clock = lambda: time.time() + DAY + 1
    assert await get(http, gw, session) == 503


async def test_sessions_that_are_to_be_known_locally_need_a_mirror(gateway, redis_url, caplog):
    table = {"url": redis_url, "mirror": {"max_bytes": 0}}
    await gateway({"redis": table, **with_session(on_redis_failure="local")})
    assert "redis.mirror.max_bytes" in caplog.text


async def test_a_value_that_fits_in_no_header_is_left_out_and_told_once(gateway, upstream, http, redis_client, caplog):
    gw = await gateway(with_session(pass_fields={"email": "X-User-Email", "name": "X-User-Name"}))
    fields = {"email": "a@b\r\nX-Admin: 1", "name": "Zoë"}
    for _ in range(2):
        session = await create_session_async(redis_client, "alice ", fields=fields)
        with caplog.at_level(logging.WARNING, "gateway.session"):
            async with http.get(gw.url, headers=cookie(session)) as response:
                assert response.status == 200
    assert told(upstream) == [(b"x-user-name", "Zoë".encode())]
    assert "X-Admin" not in upstream.requests[-1].headers
    assert [record.message.rpartition(" ")[2] for record in caplog.records] == ["X-User-Id", "X-User-Email"]


PROBE = """
from gateway.plugin import Plugin

class Probe(Plugin):
    def ask(self, request, redis):
        request.state["probe"] = f"{request.identity} {request.identity_pending}"

    async def __call__(self, request, call_next):
        response = await call_next(request)
        response.set("X-In-Ask", request.state["probe"])
        response.set("X-In-Call", f"{request.identity} {request.identity_pending}")
        return response
"""


async def test_later_plugins_know_the_user_in_ask_once_it_is_mirrored(gateway, http, redis_client, tmp_path: Path):
    (tmp_path / "session_probe.py").write_text(PROBE)
    plugins = {"session": {"required": False}, "probe": {"use": "session_probe:Probe"}}
    gw = await gateway({"plugins": plugins}, folder=tmp_path)
    session = await create_session_async(redis_client, "alice")
    seen = []
    for headers in (cookie(session), cookie(session), {}):
        asked = gw.worker.redis.asked
        async with http.get(gw.url, headers=headers) as response:
            seen.append((response.headers["X-In-Ask"], response.headers["X-In-Call"]))
    assert seen == [("None True", "alice False"), ("alice False", "alice False"), ("None False", "None False")]
    assert gw.worker.redis.asked == asked, "an anonymous request asks nothing"


# -- sliding -----------------------------------------------------------------------------------


async def test_a_session_in_use_is_moved_on_at_most_once_a_minute(gateway, http, redis_client):
    gw = await gateway(with_session())
    session = await create_session_async(redis_client, "alice")
    key = LAYOUT.key(LAYOUT.stored(session))
    start = time.time()
    original = int(await redis_client.hget(key, "expiresAt"))

    async def use(later: float) -> None:
        gw.plugins["session"].clock = lambda: start + later
        for _ in range(3):
            async with http.get(gw.url, headers=cookie(session)) as response:
                assert response.status == 200

    async def ends_at(later: float) -> bool:
        return int(await redis_client.hget(key, "expiresAt")) == math.ceil(start + later + DAY)

    await use(0)
    await use(50)
    await use(70)
    await eventually(lambda: ends_at(70))
    assert int(await redis_client.hget(key, "expiresAt")) > original
    await use(110)
    # Had it been moved on at 110, then not at 140 again.
    await use(140)
    await eventually(lambda: ends_at(140))
    assert DAY - 10 < await redis_client.ttl(key) <= DAY


async def test_the_new_end_is_written_as_the_old_one_was(gateway, http, redis_client):
    gw = await gateway(with_session())
    end = time.time() + 3600
    iso = datetime.fromtimestamp(end, UTC).isoformat()
    keys = [
        await write(redis_client, session_id, userId="alice", expiresAt=text)
        for session_id, text in (("s", str(int(end))), ("ms", str(int(end * 1000))), ("iso", iso))
    ]
    for session_id in ("s", "ms", "iso"):
        async with http.get(gw.url, headers=cookie(session_id)) as response:
            assert response.status == 200

    async def ends() -> list[str] | None:
        texts = [(await redis_client.hget(key, "expiresAt")).decode() for key in keys]
        return texts if all(parse_time(text) > end + 3600 for text in texts) else None

    seconds, milliseconds, text = await eventually(ends)
    assert len(seconds) == 10
    assert len(milliseconds) == 13
    assert text.endswith("Z")
    assert max(map(parse_time, (seconds, milliseconds, text))) < time.time() + DAY + 2


async def test_a_session_that_lasts_longer_is_not_cut(gateway, http, redis_client):
    gw = await gateway(with_session(ttl="1h"))
    session = await create_session_async(redis_client, "alice", ttl=30 * DAY)
    key = LAYOUT.key(LAYOUT.stored(session))
    before = await redis_client.hget(key, "expiresAt")
    async with http.get(gw.url, headers=cookie(session)) as response:
        assert response.status == 200
    assert await redis_client.hget(key, "expiresAt") == before
    assert not gw.plugins["session"]._touching


async def test_without_sliding_the_creator_decides(gateway, http, redis_client):
    gw = await gateway(with_session(sliding=False))
    await write(redis_client, "abc", userId="alice", expiresAt=str(int(time.time()) + 10))
    async with http.get(gw.url, headers=cookie("abc")) as response:
        assert response.status == 200
    assert not gw.plugins["session"]._touching


async def test_a_touch_brings_no_revoked_session_back(redis_client):
    key = LAYOUT.key(LAYOUT.stored("gone"))
    assert await redis_client.eval(TOUCH.source, 1, key, "expiresAt", "1", "2", 1000) == 0
    assert not await redis_client.exists(key)


async def test_only_the_first_of_several_touches_counts_and_the_key_gets_a_ttl(redis_client):
    await redis_client.hset("k", mapping={"expiresAt": "100"})
    assert await redis_client.eval(TOUCH.source, 1, "k", "expiresAt", "100", "200", 60_000) == 1
    assert await redis_client.eval(TOUCH.source, 1, "k", "expiresAt", "100", "201", 60_000) == 0
    assert await redis_client.hget("k", "expiresAt") == b"200"
    assert 0 < await redis_client.ttl("k") <= 60


async def test_a_failing_touch_is_not_repeated_with_each_request(gateway, http, redis_client):
    gw = await gateway(with_session())
    await write(redis_client, "abc", userId="alice", expiresAt=str(int(time.time()) + 3600))
    # The session is readable, and its end cannot be written.
    await redis_client.config_set("min-replicas-to-write", 1)
    try:
        await redis_client.config_resetstat()
        for _ in range(5):
            async with http.get(gw.url, headers=cookie("abc")) as response:
                assert response.status == 200
        await eventually(lambda: not gw.plugins["session"]._touching)
    finally:
        await redis_client.config_set("min-replicas-to-write", 0)
    stats = await redis_client.info("commandstats")
    calls = sum(entry["calls"] + entry["rejected_calls"] for name, entry in stats.items() if "eval" in name)
    assert calls == 1


# -- beginning and ending ----------------------------------------------------------------------


async def test_nothing_is_kept_without_a_ttl_and_no_id_can_be_read(redis_client, sync_client):
    session = await asyncio.to_thread(create_session, sync_client, "alice", fields={"email": "a@b"})
    keys = [key.decode() for key in await redis_client.keys("*")]
    assert sorted(keys) == sorted([LAYOUT.key(LAYOUT.stored(session)), LAYOUT.index("alice")])
    for key in keys:
        assert session not in key
        assert DAY - 10 < await redis_client.ttl(key) <= DAY + 70
    fields = await redis_client.hgetall(LAYOUT.key(LAYOUT.stored(session)))
    assert set(fields) == {b"userId", b"createdAt", b"expiresAt", b"email"}


async def test_a_user_has_a_bounded_number_of_sessions(redis_client, monkeypatch):
    monkeypatch.setattr(module, "MAX_SESSIONS_OF_USER", 3)
    sessions = [await create_session_async(redis_client, "alice", ttl=DAY + number) for number in range(5)]
    alive = [await redis_client.exists(LAYOUT.key(LAYOUT.stored(session))) for session in sessions]
    assert alive == [0, 0, 1, 1, 1]
    assert await redis_client.zcard(LAYOUT.index("alice")) == 3


async def test_the_index_forgets_what_is_over_and_overwrites_garbage(redis_client):
    await redis_client.set(LAYOUT.index("alice"), "garbage")
    script = module.INDEX.source
    for args in (("old", 1010.0, 1000.0), ("new", 2000.0, 1000.0), ("newer", 3000.0, 1500.0)):
        await redis_client.eval(script, 1, LAYOUT.index("alice"), *index_args(*args))
    assert await redis_client.zrange(LAYOUT.index("alice"), 0, -1) == [b"new", b"newer"]


@pytest.mark.parametrize("user", ["", "x" * 257])
async def test_a_session_needs_a_user_of_sane_length(redis_client, user):
    with pytest.raises(ValueError, match="1 to 256 characters"):
        await create_session_async(redis_client, user)


async def test_a_revoked_session_is_refused_on_the_other_node(gateway, http, redis_client, sync_client):
    one, two = await gateway(with_session()), await gateway(with_session())
    session = await create_session_async(redis_client, "alice")
    other = await create_session_async(redis_client, "alice")

    async def status(node: Any, session_id: str) -> int:
        async with http.get(node.url, headers=cookie(session_id)) as response:
            return response.status

    for node in (one, two):
        assert [await status(node, session) for _ in range(2)] == [200, 200]
        assert await status(node, other) == 200
    asked = two.worker.redis.asked
    assert await status(two, session) == 200
    assert two.worker.redis.asked == asked, "a session in use is answered from memory"
    assert await asyncio.to_thread(revoke_session, sync_client, [LAYOUT], session)

    async def refused(session_id: str) -> bool:
        return await status(two, session_id) == 401

    await eventually(lambda: refused(session), within=1)
    assert await status(two, other) == 200
    assert await asyncio.to_thread(revoke_user, sync_client, [LAYOUT], "alice") == 1
    await eventually(lambda: refused(other), within=1)


async def test_revoking_a_user_ends_sessions_that_the_gateway_did_not_begin(gateway, http, redis_client, sync_client):
    gw = await gateway(with_session())
    key = await write(redis_client, "abc", userId="alice", expiresAt=str(int(time.time()) + 3600))
    async with http.get(gw.url, headers=cookie("abc")) as response:
        assert response.status == 200
    await eventually(lambda: redis_client.exists(LAYOUT.index("alice")))
    assert await asyncio.to_thread(revoke_user, sync_client, [LAYOUT], "alice") == 1
    assert not await redis_client.exists(key, LAYOUT.index("alice"))


# -- commands ----------------------------------------------------------------------------------


@pytest.fixture
def run(redis_url: str, monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "redis", redis_url)
    monkeypatch.setattr(settings, "config", None)
    return lambda *arguments, stdin=None: CliRunner().invoke(commands, list(arguments), input=stdin)


async def test_commands_list_show_and_revoke(run, redis_client):
    fields = {"email": "[red]a@b"}
    sessions = [await create_session_async(redis_client, "alice", ttl=DAY - 30, fields=fields) for _ in range(3)]
    stored = [LAYOUT.stored(session) for session in sessions]
    listed = run("list", "alice")
    assert listed.exit_code == 0
    assert all(name in listed.output for name in stored)
    assert not any(session in listed.output for session in sessions)
    assert "23 h 59 min" in listed.output
    assert "Up to 1 more" in run("list", "alice", "--limit", "2").output

    for given_id, stdin in ((stored[0], None), (sessions[0], None), ("-", sessions[0] + "\n")):
        result = run("show", given_id, stdin=stdin)
        assert result.exit_code == 0, result.output
        assert "alice" in result.output
        assert "[red]a@b" in result.output
        assert sessions[0] not in result.output

    assert run("revoke", stored[0]).output == "Ended the session.\n"
    assert await redis_client.zcard(LAYOUT.index("alice")) == 2
    assert run("revoke", stored[0]).exit_code == 1
    assert run("show", stored[0]).exit_code == 1
    assert run("revoke", "--user", "alice").output == "Ended 2 sessions of alice.\n"
    assert run("list", "alice").output == "alice has no session.\n"
    assert await redis_client.keys("*") == []


def test_no_sessions_id_is_taken_for_an_option() -> None:
    ids = [module.begin(LAYOUT, "alice", now=0.0).id for _ in range(1000)]
    assert not [one for one in ids if one.startswith("-")]
    assert len(set(ids)) == 1000


async def test_commands_never_search_the_keyspace(run, redis_client):
    session = await create_session_async(redis_client, "alice")
    await redis_client.config_resetstat()
    for arguments in (("list", "alice"), ("show", session), ("revoke", session), ("revoke", "--user", "alice")):
        assert run(*arguments).exit_code == 0
    stats = await redis_client.info("commandstats")
    assert not {"cmdstat_keys", "cmdstat_scan"} & set(stats)


async def test_commands_take_garbage_as_nothing(run, redis_client):
    await redis_client.set(LAYOUT.index("alice"), "garbage")
    await redis_client.set(LAYOUT.key(LAYOUT.stored("abc")), "garbage")
    assert run("list", "alice").output == "alice has no session.\n"
    assert run("show", "abc").exit_code == 1
    assert run("revoke", "--user", "alice").output == "Ended 0 sessions of alice.\n"
    assert run("revoke", "abc").output == "Ended the session.\n"


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (("list", "alice"), "zrange|zrevrange"),
        (("list", "alice"), "zcard"),
        (("list", "alice"), "hgetall"),
        (("show", "abc"), "hgetall"),
        (("revoke", "abc"), "hgetall"),
        (("revoke", "abc"), "unlink"),
        (("revoke", "abc"), "zrem"),
        (("revoke", "--user", "alice"), "zrange"),
        (("revoke", "--user", "alice"), "unlink"),
        (("revoke", "--user", "alice"), "zrem"),
    ],
)
async def test_commands_take_no_missing_right_for_a_missing_session(
    run, redis_client, acl_user, monkeypatch, arguments, missing
):
    """Whoever ends the sessions of a stolen account is not to hear that there are none."""
    await write(redis_client, "abc", userId="alice", expiresAt=str(int(time.time()) + DAY))
    await redis_client.zadd(LAYOUT.index("alice"), {LAYOUT.stored("abc"): time.time() + DAY})
    names = missing.split("|")
    monkeypatch.setattr(settings, "redis", await acl_user("~gateway:*", "+@all", *[f"-{name}" for name in names]))
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "Ended" not in refused.stdout
    assert "no session" not in refused.stdout
    command = names[-1]
    assert f"its user may not run {command.upper()}: grant it +{command}; `gateway doctor --acl`" in refused.stderr
    assert LAYOUT.stored("abc") not in refused.stderr
    monkeypatch.setattr(settings, "redis", await acl_user("~gateway:*", "+@all"))
    assert run(*arguments).exit_code == (1 if arguments[:2] == ("revoke", "abc") and missing == "zrem" else 0)


async def test_commands_tell_that_keys_are_closed_to_their_user(run, acl_user, monkeypatch):
    monkeypatch.setattr(settings, "redis", await acl_user("~other:*", "+@all"))
    for arguments in (("list", "alice"), ("show", "abc"), ("revoke", "abc"), ("revoke", "--user", "alice")):
        refused = run(*arguments)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert "its user may not use the keys" in refused.stderr


@pytest.mark.parametrize("arguments", [("revoke",), ("revoke", "abc", "--user", "alice")])
async def test_revoke_wants_one_of_id_and_user(run, arguments):
    result = run(*arguments)
    assert result.exit_code == 1
    assert "--user USER" in result.output


async def test_commands_use_the_keys_of_the_configuration(run, redis_client, monkeypatch, tmp_path: Path):
    (tmp_path / "config.toml").write_text(
        '[redis]\nprefix = "shop"\n[plugins.session]\nkey = "{prefix}:s:{id}"\nhash_ids = false\n'
    )
    layout = Layout("shop", key="{prefix}:s:{id}", hash_ids=False)
    session = await create_session_async(redis_client, "bob", layout=layout)
    listed = run("list", "bob").output
    assert session not in listed, "an id that a client could send is not shown"
    assert session[:6] in listed
    assert run("revoke", session).exit_code == 0
    assert await redis_client.keys("*") == []


async def test_commands_with_sessions_that_end_with_their_key(run, redis_client, tmp_path: Path):
    (tmp_path / "config.toml").write_text('[plugins.session]\nexpires_field = ""\nsliding = false\n')
    layout = Layout(expires_field="")
    session = await create_session_async(redis_client, "bob", layout=layout, ttl=3600)
    key = layout.key(layout.stored(session))
    assert set(await redis_client.hgetall(key)) == {b"userId", b"createdAt"}
    assert 3590 < await redis_client.ttl(key) <= 3600
    assert "59 min" in run("list", "bob").output
    await redis_client.persist(key)
    assert "for ever" in run("list", "bob").output
    assert "bob" in run("show", session).output
    assert run("revoke", session).output == "Ended the session.\n"
    assert run("list", "bob").output == "bob has no session.\n"


def test_text_from_redis_cannot_steer_a_terminal():
    assert shown("a\x1b[31mb") == "a�[31mb"
    assert len(shown("x" * 10_000)) < 300


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-0.001, "for ever"),
        (math.inf, "for ever"),
        (5, "5 s"),
        (300, "5 min"),
        (86399, "23 h 59 min"),
        (90061, "1 d 1 h"),
    ],
)
def test_span(seconds, text):
    assert span(seconds) == text


# -- configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"key": "sessions"}, "once"),
        ({"key": "{id}"}, "any key"),
        ({"ttl": "30s"}, "shorter than ttl"),
        ({"pass_fields": {"id": "x_user_id"}}, "different header fields"),
        ({"user_header": "Host"}, "host"),
        ({"user_header": "X User"}, "pattern"),
        ({"sources": []}, "at least 1"),
        ({"realm": 'a"b'}, "pattern"),
        ({"expires_field": ""}, "sliding = false"),
    ],
)
def test_a_wrong_configuration_says_why(keys, message):
    with pytest.raises(ValidationError, match=message):
        Session.Config.model_validate(keys)


# -- garbage -----------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), max_size=50)


@given(st.lists(st.tuples(st.sampled_from(["Cookie", "Authorization", "X-Session-Id"]), TEXT), max_size=3))
@example([("Cookie", "session=\udcff")])
@example([("Cookie", "session=;session==;=;;"), ("Authorization", "Bearer ")])
async def test_no_request_makes_ask_raise(headers):
    plugin = Session(Session.Config(sources=("cookie", "bearer", "header")), "session")
    never_connected = Redis(LinkOptions("redis://127.0.0.1:1"))
    request = bare_request(headers=CIMultiDict(headers))
    answer = plugin.ask(request, never_connected)
    assert answer is None or isinstance(answer, Known) or request.identity_pending
    assert request.changes == {b"x-user-id": None}
    assert request.user is None


@given(
    st.dictionaries(
        st.sampled_from([b"userId", b"expiresAt", b"email"]),
        st.binary(max_size=40) | st.sampled_from([b"alice", b"1e400", b"9999999999999999", b"0001-01-01T00:00+23:59"]),
    )
)
def test_no_hash_makes_parse_raise_more_than_value_error(fields):
    plugin = Session(Session.Config(pass_fields={"email": "X-Email"}), "session")
    try:
        found = plugin._parse(fields)
    except ValueError:
        return
    assert found is None or (found.user and math.isfinite(found.expires))
    for line in found.changes.values() if found else ():
        assert line.count(b"\r\n") == 1
        assert line.endswith(b"\r\n")


@given(
    st.integers(-1, 10**12),
    st.dictionaries(st.sampled_from([b"userId", b"expiresAt"]), st.binary(max_size=9) | st.just(b"alice")),
)
def test_a_session_ends_with_its_key_whatever_else_it_holds(left, fields):
    plugin = Session(Session.Config(expires_field="", sliding=False), "session")
    plugin.clock = lambda: 1000.0
    try:
        found = plugin._lasting([left, [part for field in fields.items() for part in field]])
    except ValueError:
        return
    assert (found is None) == (not fields)
    if found is not None:
        assert found.expires == (math.inf if left < 0 else 1000 + left / 1000)


@given(st.integers(10**8, 4 * 10**9), st.sampled_from(["1700000000", "1700000000000", "2024-01-01T00:00:00Z"]))
def test_a_time_survives_its_notation(seconds, like):
    assert parse_time(format_time(seconds, like)) == seconds


def test_scripts_say_what_they_take():
    for script in (TOUCH, CREATE, module.INDEX, module.READ):
        assert b"KEYS[1]" in script.source.partition(b"redis.call")[0]
