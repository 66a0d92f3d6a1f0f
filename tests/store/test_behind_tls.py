"""Sentinels and clusters behind TLS: what is asked of any of their servers is encrypted, and names are checked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.doctor.nodes import Unreachable, find
from gateway.store import RedisDown
from gateway.store.clients import make_async_client, make_client
from tests.harness import eventually
from tests.servers import Cluster, Sentinel
from tests.store.behind_tls import Behind, behind_tls
from tests.store.conftest import MakeStore
from tests.store.test_clients import both_work

Start = Callable[..., Awaitable[Behind]]
NAME = "redis.internal"


@pytest.fixture(params=["relay", "redis-server"])
async def start(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a group whose certificates have a name. Twice, if this machine has a Redis that speaks TLS itself."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(group: Sentinel | Cluster, name: str) -> Behind:
            try:
                return await stack.enter_async_context(
                    behind_tls(group, tmp_path, name, own=request.param == "redis-server")
                )
            except LookupError as error:
                pytest.skip(str(error))

        yield make


def examined(url: str) -> list[str]:
    """The roles of the servers that `gateway doctor` reaches."""
    deployment = find(url)
    try:
        return [node.role for node in deployment.nodes if node.client.ping()]
    finally:
        deployment.close()


async def test_sentinels_and_the_servers_they_name(start: Start, make: MakeStore) -> None:
    group = Sentinel()
    behind = await start(group, "127.0.0.1")
    store = await make(behind.url(), read_from="replica")
    await eventually(lambda: all(link.up for link in store.all_links))
    assert {link.where for link in store.links} == {("127.0.0.1", group.primary.port)}
    assert await store.ask("SET", "k", 1) == b"OK"
    assert await store.read("GET", "k") == b"1"
    assert behind.secured == set(group.servers)
    await both_work(behind.url())
    assert await asyncio.to_thread(examined, behind.url()) == ["primary", "replica"]
    group.primary.kill()
    await group.failed_over(group.primary)
    await eventually(lambda: store.up, within=5)
    assert await store.ask("SET", "k", 2) == b"OK"
    stranger = await make(behind.url().partition("?")[0])
    assert "certificate verify failed" in stranger.why_down


@pytest.mark.parametrize("kind", [Sentinel, Cluster])
async def test_one_name_in_all_certificates(
    start: Start, make: MakeStore, kind: type[Sentinel] | type[Cluster]
) -> None:
    behind = await start(kind(), NAME)
    store = await make(behind.url(NAME), read_from="replica")
    await eventually(lambda: all(link.up for link in store.all_links))
    keys = [f"key:{number}" for number in range(30)]
    assert await asyncio.gather(*[store.ask("SET", key, 1) for key in keys]) == [b"OK"] * len(keys)
    assert behind.secured == set(behind.group.servers)
    await both_work(behind.url(NAME))
    assert set(await asyncio.to_thread(examined, behind.url(NAME))) == {"primary", "replica"}
    await is_refused(make, behind.url(), "127.0.0.1")
    await is_refused(make, behind.url("redis.external"), "redis.external")


async def is_refused(make: MakeStore, url: str, name: str) -> None:
    """By all who connect, and they say so."""
    store = await make(url)
    assert not store.up
    assert f"certificate is not valid for '{name}'" in store.why_down
    assert isinstance(store.ask("GET", "k").error, RedisDown)
    await store.stop()
    with pytest.raises(redis.RedisError, match=r"not valid for|No master"):
        await asyncio.to_thread(lambda: make_client(url, 1.0, "test").ping())
    client: Any = make_async_client(url, 1.0, "test")
    with pytest.raises(redis.RedisError, match=r"not valid for|No master"):
        await client.ping()
    await client.aclose()
    with pytest.raises(Unreachable, match="not valid for"):
        await asyncio.to_thread(find, url)
