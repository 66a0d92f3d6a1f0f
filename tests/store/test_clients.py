"""redis-py's clients by URL, as commands and admin routes use them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.store.clients import make_async_client, make_client
from tests.harness import free_port
from tests.servers import Cluster, Sentinel, TlsServer


async def both_work(url: str) -> None:
    def sync() -> None:
        client: Any = make_client(url, 2.0, "test")
        try:
            client.set("{k}", "v", px=5000)
            pipeline = client.pipeline(transaction=False)
            for number in range(20):
                pipeline.set(f"k{number}", number)
            assert pipeline.execute() == [True] * 20
            assert client.eval("return redis.call('GET', KEYS[1])", 1, "{k}") == b"v"
            assert client.ping()
        finally:
            client.close()

    await asyncio.to_thread(sync)
    client: Any = make_async_client(url, 2.0, "test")
    try:
        pipeline = client.pipeline(transaction=False)
        for number in range(20):
            pipeline.get(f"k{number}")
            pipeline.memory_usage(f"k{number}", samples=0)
        replies = await pipeline.execute(raise_on_error=False)
        assert replies[::2] == [str(number).encode() for number in range(20)]
        assert all(isinstance(size, int) for size in replies[1::2])
        assert len([name async for name in client.scan_iter(count=7)]) >= 20
        assert await client.dbsize(target_nodes="primaries") >= 20
    finally:
        await client.aclose()


async def test_one_server(redis_url: str) -> None:
    await both_work(redis_url)


async def test_a_cluster(cluster: Cluster) -> None:
    await both_work(cluster.url)


async def test_behind_sentinels(sentinel: Sentinel) -> None:
    await both_work(sentinel.url)


async def test_tls(tls: Callable[..., Awaitable[TlsServer]]) -> None:
    await both_work((await tls()).url)
    server = await tls("redis.internal")
    await both_work(f"{server.url}&ssl_server_name=redis.internal")


async def test_a_right_that_is_missing_is_told_as_such_by_a_cluster_too(cluster: Cluster) -> None:
    """It is no server outside of a cluster."""
    for server in cluster.servers:
        await server.ask("ACL SETUSER", "ada", "reset", "on", ">hush", "~*", "+ping", "+client|setname")
    url = cluster.url.replace("://", "://ada:hush@")
    try:
        with pytest.raises(redis.exceptions.NoPermissionError, match=r"cluster\|slots"):
            await asyncio.to_thread(make_client, url, 1.0, "test")
        client: Any = make_async_client(url, 1.0, "test")
        with pytest.raises(redis.exceptions.NoPermissionError, match=r"cluster\|slots"):
            await client.ping()
        await client.aclose()
    finally:
        for server in cluster.servers:
            await server.ask("ACL DELUSER", "ada")


@pytest.mark.parametrize("secure", [True, False])
@pytest.mark.parametrize("kind", ["", "+cluster", "+sentinel"])
async def test_what_is_away_is_a_redis_error(kind: str, secure: bool, tmp_path: Path) -> None:
    service, scheme = "/main" if kind == "+sentinel" else "", "rediss" if secure else "redis"
    url = f"{scheme}{kind}://127.0.0.1:{free_port()}{service}"
    if secure:
        url += f"?ssl_ca_path={tmp_path}&ssl_password=hunter2&ssl_cert_reqs=required&ssl_server_name=redis.internal"

    def sync() -> None:
        make_client(url, 1.0, "test").ping()

    with pytest.raises(redis.RedisError):
        await asyncio.to_thread(sync)
    client = make_async_client(url, 1.0, "test")
    with pytest.raises(redis.RedisError):
        await client.get("k")
    await client.aclose()
