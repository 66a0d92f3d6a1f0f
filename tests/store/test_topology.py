"""Sentinels, TLS and users: the primary is found, followed, and left when it is none any more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from gateway.store import Gets, Known, Read, Redis, RedisDown, Script
from tests.harness import Valkey, eventually, free_port
from tests.servers import Sentinel, TlsServer
from tests.store.conftest import MakeStore

COUNT = Script("return redis.call('INCR', KEYS[1])", "count.lua")


async def works(store: Redis) -> None:
    """All kinds of questions are answered, and what was read is withdrawn when it changes."""
    key = "works"
    await store.ask("DEL", key)
    assert await store.ask("SET", key, 1) == b"OK"
    assert await store.run(COUNT, [key]) == 2
    assert await store.gets(Gets([Read("GET", key), Read("GET", "none")])) == [b"2", None]
    assert await store.read("GET", key) == b"2"
    assert isinstance(store.read("GET", key), Known)
    await store.ask("SET", key, "big" * 1000, bulk=True)

    async def changed() -> bool:
        return bool(await store.read("GET", key) == b"big" * 1000)

    await eventually(changed)


async def shows(store: Redis, key: str, value: bytes) -> None:
    async def reads() -> bool:
        with contextlib.suppress(RedisDown):
            return bool(await store.read("GET", key) == value)
        return False

    await eventually(reads, within=10)


# -- Sentinels -----------------------------------------------------------------------------------------


async def test_the_primary_that_the_sentinels_name(make: MakeStore, sentinel: Sentinel) -> None:
    store = await make(sentinel.url)
    assert store.up
    assert {link.where for link in store.links} == {("127.0.0.1", sentinel.primary.port)}
    await works(store)


async def test_a_killed_primary_is_replaced(make: MakeStore, sentinel: Sentinel) -> None:
    store = await make(sentinel.url)
    assert await store.read("GET", "revoked") is None
    sentinel.primary.kill()
    await eventually(lambda: not any(link.up for link in store.links))
    assert len(store.mirror) == 0
    answer = store.ask("GET", "k")
    assert answer.ready, "nobody waits for a server that is known to be away"
    assert isinstance(answer.error, RedisDown)
    new = await sentinel.failed_over(sentinel.primary)
    await eventually(lambda: store.up, within=5)
    await works(store)
    await new.ask("SET", "revoked", "yes")
    await shows(store, "revoked", b"yes")


async def test_a_failover_while_all_are_alive(make: MakeStore, sentinel: Sentinel) -> None:
    store = await make(sentinel.url)
    assert await store.read("GET", "revoked") is None
    await sentinel.fail_over()
    new = await sentinel.failed_over(sentinel.primary)
    await new.ask("SET", "revoked", "yes")
    await shows(store, "revoked", b"yes")
    await eventually(lambda: store.up, within=5)
    await eventually(lambda: {link.where for link in store.links} == {("127.0.0.1", new.port)})


async def test_a_primary_that_was_cut_off_is_left_once_the_sentinels_name_another(
    make: MakeStore, sentinel: Sentinel
) -> None:
    """This worker still reaches it, and hears of nothing that is written to the new one."""
    store = await make(sentinel.url, max_silence=0.6)
    old = sentinel.primary
    assert await store.read("GET", "revoked") is None
    async with old.client() as client:
        watching = [found["id"] for found in await client.client_list() if found["name"].startswith("sentinel")]
        await client.config_set("requirepass", "the Sentinels do not know it")
        for number in watching:
            await client.execute_command("CLIENT KILL", "ID", number)
        new = await sentinel.failed_over(old)
        await new.ask("SET", "revoked", "yes")
        await eventually(lambda: store.mirror.get(b"revoked") is None, within=1.5)
        assert (await client.info("replication"))["role"] == "master", "it knows nothing of it"
    await shows(store, "revoked", b"yes")
    await eventually(lambda: {link.where for link in store.links} == {("127.0.0.1", new.port)})


async def test_a_service_that_nobody_knows(make: MakeStore, sentinel: Sentinel) -> None:
    store = await make(sentinel.url.replace("/main", "/mian"))
    assert not store.up
    assert "the Sentinels name no primary 'mian': they know main" in store.why_down


async def test_sentinels_that_are_away(make: MakeStore, sentinel: Sentinel) -> None:
    port = free_port()
    store = await make(f"redis+sentinel://127.0.0.1:{port}/main")
    assert "they do not answer" in store.why_down
    some = await make(f"redis+sentinel://127.0.0.1:{port},{sentinel.hosts}/main")
    assert some.up
    for watching in sentinel.sentinels:
        watching.kill()
    await asyncio.sleep(0)
    await works(some)  # that they are away says nothing about Redis


async def test_sentinels_and_servers_have_passwords_of_their_own(make: MakeStore) -> None:
    async with Sentinel(password="re/d is", sentinel_password="sent:inel") as sentinel:
        store = await make(f"{sentinel.url}?sentinel_password=sent:inel")
        await works(store)
        refused = await make(f"{sentinel.url}?sentinel_password=hunter2")
        assert not refused.up
        assert "invalid username-password" in refused.why_down
        assert "hunter2" not in refused.why_down
        wrong = await make(f"{sentinel.url.replace('re%2Fd%20is', 'hunter2')}?sentinel_password=sent:inel")
        assert "WRONGPASS" in wrong.why_down


# -- what is no primary --------------------------------------------------------------------------------


async def test_a_replica_is_refused(make: MakeStore, sentinel: Sentinel) -> None:
    store = await make(sentinel.replica.url)
    assert not store.up
    assert "this is a replica" in store.why_down


async def test_a_sentinel_is_no_redis(make: MakeStore, sentinel: Sentinel) -> None:
    store = await make(sentinel.sentinels[0].url.removesuffix("/0"))
    assert 'this is a Sentinel: expected "redis+sentinel://HOST:PORT/SERVICE"' in store.why_down


async def test_a_server_that_becomes_a_replica_is_left(make: MakeStore, own_valkey: Valkey, redis_url: str) -> None:
    store = await make(own_valkey.url)
    assert await store.read("GET", "k") is None
    other = await make(own_valkey.url)
    await other.ask("REPLICAOF", "127.0.0.1", redis_url.rpartition(":")[2].partition("/")[0])
    with pytest.raises(RedisDown):
        await store.ask("SET", "k", 1)
    assert len(store.mirror) == 0
    assert not store.links[0].up
    await eventually(lambda: "this is a replica" in store.why_down)
    assert isinstance(store.ask("GET", "k").error, RedisDown)


# -- TLS and users -------------------------------------------------------------------------------------


async def test_tls_with_a_ca_of_ones_own(make: MakeStore, tls: Callable[..., Awaitable[TlsServer]]) -> None:
    server = await tls()
    await works(await make(server.url))
    stranger = await make(server.bare_url)
    assert not stranger.up
    assert "certificate verify failed" in stranger.why_down


async def test_tls_with_another_name_than_the_host(make: MakeStore, tls: Callable[..., Awaitable[TlsServer]]) -> None:
    server = await tls("redis.internal")
    other = await make(server.url)
    assert "certificate verify failed" in other.why_down
    await works(await make(f"{server.url}&ssl_server_name=redis.internal"))


async def test_a_client_certificate(make: MakeStore, tls: Callable[..., Awaitable[TlsServer]]) -> None:
    server = await tls(client_certificate=True)
    await works(await make(server.client_url))
    without = await make(server.url)
    await eventually(lambda: not without.up)


async def test_a_user_with_the_rights_that_are_needed(make: MakeStore, acl_user: Callable[..., Awaitable[str]]) -> None:
    await works(await make(await acl_user("~*", "&*", "+@all")))
    short = await make(await acl_user("~*", "+@all", "-client|tracking"))
    assert not short.up
    assert "client|tracking" in short.why_down
