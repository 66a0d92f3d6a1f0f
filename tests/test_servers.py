"""The fixtures do what their names say; otherwise what tests show with them would mean nothing."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import redis.asyncio
from redis.exceptions import (
    AskError,
    AuthenticationError,
    MovedError,
    NoPermissionError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as NoConnection

from tests.harness import eventually
from tests.relay import Relay, running_relays
from tests.servers import Cluster, Sentinel, Server, TlsServer, free_ports


async def test_each_slot_of_a_cluster_has_a_primary_and_a_replica(cluster: Cluster) -> None:
    primaries = await cluster.primaries()
    assert primaries == cluster.servers[:3]
    for primary, replica in zip(primaries, cluster.servers[3:], strict=True):
        assert await cluster.replica_of(primary) is replica
    home = await cluster.home("k")
    await home.ask("SET", "k", "v")
    [other, *_] = [primary for primary in primaries if primary is not home]
    with pytest.raises(MovedError):
        await other.ask("GET", "k")


async def test_a_slot_moves_key_by_key(cluster: Cluster) -> None:
    slot = cluster.slot("{a}1")
    source = await cluster.owner(slot)
    for number in range(3):
        await source.ask("SET", f"{{a}}{number}", number)
    migration = await cluster.migrate(slot)
    await migration.move("{a}1")
    assert await source.ask("GET", "{a}0") == "0"
    with pytest.raises(AskError):
        await source.ask("GET", "{a}1")
    await migration.finish()
    assert await cluster.owner(slot) is migration.target is not source
    assert await migration.target.ask("GET", "{a}2") == "2"
    assert not await cluster.as_made()


async def test_a_dead_primary_of_a_cluster_is_replaced(cluster: Cluster) -> None:
    dead = cluster.servers[0]
    dead.kill()
    heir = await cluster.failed_over(dead)
    assert heir is cluster.servers[3]
    dead.start()
    await cluster.settled()
    await cluster.promote(dead)
    await cluster.settled()
    assert await cluster.primaries() == cluster.servers[:3]


async def test_sentinels_replace_a_primary_that_does_not_answer(sentinel: Sentinel) -> None:
    old = await sentinel.current()
    assert old is sentinel.primary
    with pytest.raises(ReadOnlyError):
        await sentinel.replica.ask("SET", "k", "v")
    old.pause()
    assert await sentinel.failed_over(old) is sentinel.replica
    old.resume()
    await sentinel.settled()
    assert await old.role() == "slave"

    async def swapped() -> bool:
        # A Sentinel may find that it is too soon, or that the replica has only just come back.
        with suppress(ResponseError):
            await sentinel.fail_over()
        return await sentinel.current() is old

    await eventually(swapped, within=40, every=1)
    assert await sentinel.failed_over(sentinel.replica) is old


async def test_passwords_of_sentinels_and_servers_are_their_own() -> None:
    async with Sentinel(password="data", sentinel_password="watch") as trio:
        assert trio.url.startswith("redis+sentinel://:data@127.0.0.1:")
        assert await trio.current() is trio.primary
        trio.sentinels[0].password = "data"
        with pytest.raises(AuthenticationError):
            await trio.sentinels[0].ask("SENTINEL MASTER", trio.service)


async def test_a_user_may_do_what_the_rules_say(acl_user: Callable[..., Awaitable[str]]) -> None:
    url = await acl_user("~gateway:*", "+get", "+hello", "+client")
    async with redis.asyncio.Redis.from_url(url) as client:
        assert await client.get("gateway:k") is None
        with pytest.raises(NoPermissionError):
            await client.get("other")
        with pytest.raises(NoPermissionError):
            await client.set("gateway:k", "v")


async def ping(url: str) -> bool:
    async with redis.asyncio.Redis.from_url(url) as client:
        return bool(await client.ping())


async def test_a_server_with_tls_is_trusted_by_its_authority_only(tls: Callable[..., Awaitable[TlsServer]]) -> None:
    server = await tls()
    assert await ping(server.url)
    with pytest.raises((NoConnection, ssl.SSLError)):
        await ping(server.bare_url)
    assert await server.backend.ask("PING")


async def test_a_server_may_ask_for_the_clients_certificate(tls: Callable[..., Awaitable[TlsServer]]) -> None:
    server = await tls(client_certificate=True)
    assert await ping(server.client_url)
    with pytest.raises((NoConnection, ssl.SSLError)):
        await ping(server.url)


async def test_a_certificate_for_another_name_is_refused(tls: Callable[..., Awaitable[TlsServer]]) -> None:
    server = await tls("redis.example")
    with pytest.raises((NoConnection, ssl.SSLError)):
        await ping(server.url)


async def answer(reader: asyncio.StreamReader, within: float = 1.0) -> bytes:
    try:
        return await asyncio.wait_for(reader.read(1000), within)
    except TimeoutError:
        return b"(silence)"


async def test_a_relay_misbehaves_as_told(relay: Relay) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)

    async def ask(within: float = 1.0) -> bytes:
        writer.write(b"PING\r\n")
        return await answer(reader, within)

    assert await ask() == b"+PONG\r\n"
    relay.delay = 0.1
    began = time.monotonic()
    assert await ask() == b"+PONG\r\n"
    assert time.monotonic() - began > 0.09
    relay.delay = 0
    relay.partition()
    assert await ask(0.1) == b"(silence)"
    relay.heal()
    assert await answer(reader) == b"+PONG\r\n"
    relay.cut_after(3)
    assert await ask() == b"+PO"
    with pytest.raises(ConnectionResetError):
        await reader.read(1)
    writer.close()


async def test_a_relay_refuses_until_it_is_started_again(relay: Relay) -> None:
    relay.refuse()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", relay.port)
    await relay.start()
    assert await ping(relay.url)


async def test_who_has_come_through_a_relay_is_told_of_no_other_way_to_a_cluster(cluster: Cluster) -> None:
    home = await cluster.home("k")
    [other, *_] = [primary for primary in await cluster.primaries() if primary is not home]
    async with running_relays(server.port for server in cluster.servers) as relays:
        behind = {relay.port for relay in relays.all}
        async with redis.asyncio.Redis(port=relays[other.port].port, decode_responses=True) as client:
            slots = await client.execute_command("CLUSTER SLOTS")
            assert {node[1] for _, _, *nodes in slots for node in nodes} == behind
            with pytest.raises(MovedError) as moved:
                await client.get("k")
        assert moved.value.port == relays[home.port].port
        url = relays.renamed(cluster.url.encode()).decode()
        assert {int(host.rpartition(":")[2]) for host in url.split(",")} == behind


@pytest.mark.parametrize("protocol", [2, 3])
async def test_who_has_come_through_a_relay_is_told_of_no_other_way_behind_sentinels(
    sentinel: Sentinel, protocol: int
) -> None:
    watching = sentinel.sentinels[0].port
    async with (
        running_relays(server.port for server in sentinel.servers) as relays,
        redis.asyncio.Redis(port=relays[watching].port, protocol=protocol, decode_responses=True) as client,
    ):
        primary = relays[sentinel.primary.port].port
        assert await client.sentinel_get_master_addr_by_name(sentinel.service) == ("127.0.0.1", primary)
        assert (await client.sentinel_masters())[sentinel.service]["port"] == primary
        [replica] = await client.sentinel_slaves(sentinel.service)
        assert replica["port"] == relays[sentinel.replica.port].port


async def test_different_servers_get_different_ports() -> None:
    assert len({*free_ports(50)}) == 50
    assert Server(1, password="p@ss").url == "redis://:p%40ss@127.0.0.1:1/0"
