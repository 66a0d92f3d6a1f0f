"""Fixtures: see `tests/harness.py` for what they start."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio
import uvloop
from hypothesis import HealthCheck, settings

from tests.harness import Gateway, UpstreamServer, Valkey, running_upstream, running_valkey, start_gateway
from tests.relay import Relay, running_relay
from tests.servers import Cluster, Keeper, Sentinel, TlsServer, running_tls_process, running_tls_relay, userinfo

settings.register_profile(
    "default", deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Any]:
    """Tests run on the loop that the gateway runs on."""
    return {"uvloop": uvloop.new_event_loop}


StartGateway = Callable[..., Awaitable[Gateway]]


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


@pytest.fixture
async def redis_client(shared_valkey: Valkey) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.Redis.from_url(shared_valkey.url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def redis_url(shared_valkey: Valkey, redis_client: redis.asyncio.Redis) -> str:
    """A real, empty Valkey."""
    return shared_valkey.url


@pytest.fixture
def own_valkey() -> Iterator[Valkey]:
    """A server of the test's own, to be killed, paused and restarted."""
    with running_valkey() as server:
        yield server


@pytest.fixture
async def relay(shared_valkey: Valkey, redis_url: str) -> AsyncIterator[Relay]:
    """Stands before the Redis of `redis_url`, and can be told to misbehave."""
    async with running_relay(shared_valkey.port) as relay:
        yield relay


@pytest.fixture(scope="session")
def kept_cluster() -> Iterator[Keeper[Cluster]]:
    with Keeper(Cluster) as keeper:
        yield keeper


@pytest.fixture
async def cluster(kept_cluster: Keeper[Cluster]) -> Cluster:
    """Three primaries with a replica each, empty. Do with it what you like: the next test gets a new one if needed."""
    return await kept_cluster.take()


@pytest.fixture(scope="session")
def kept_sentinel() -> Iterator[Keeper[Sentinel]]:
    with Keeper(Sentinel) as keeper:
        yield keeper


@pytest.fixture
async def sentinel(kept_sentinel: Keeper[Sentinel]) -> Sentinel:
    """Primary, replica and three Sentinels, empty; the same."""
    return await kept_sentinel.take()


@pytest.fixture
async def acl_user(
    shared_valkey: Valkey, redis_client: redis.asyncio.Redis
) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Makes a user of the Redis of `redis_url` with the rights that these ACL rules give; the URL for it."""
    made: list[str] = []

    async def make(*rules: str, user: str = "gate:way", password: str = "s3/cr@t:#?%") -> str:
        await redis_client.execute_command("ACL SETUSER", user, "reset", "on", f">{password}", *rules)
        made.append(user)
        return f"redis://{userinfo(user, password)}127.0.0.1:{shared_valkey.port}/0"

    yield make
    for user in made:
        await redis_client.execute_command("ACL DELUSER", user)


@pytest.fixture(params=["relay", "redis-server"])
async def tls(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[TlsServer]]]:
    """Makes a server with TLS: `await tls("127.0.0.1", client_certificate=True)`. Twice, if this machine has a Redis
    that speaks TLS itself."""
    async with AsyncExitStack() as stack:

        async def make(*names: str, client_certificate: bool = False) -> TlsServer:
            names = names or ("127.0.0.1", "localhost")
            if request.param == "relay":
                server, _ = await stack.enter_async_context(
                    running_tls_relay(tmp_path, *names, client_certificate=client_certificate)
                )
                return server
            try:
                return stack.enter_context(running_tls_process(tmp_path, *names, client_certificate=client_certificate))
            except LookupError as error:
                pytest.skip(str(error))

        yield make


@pytest.fixture
async def upstream() -> AsyncIterator[UpstreamServer]:
    async with running_upstream() as server:
        yield server


@pytest.fixture
async def gateway(redis_url: str, upstream: UpstreamServer) -> AsyncIterator[StartGateway]:
    """Starts gateway nodes; what is missing in the configuration is filled in."""
    running: list[Gateway] = []

    async def start(config: dict[str, Any] | None = None, folder: Path | None = None, **options: Any) -> Gateway:
        config = dict(config or {})
        config["redis"] = {"url": redis_url, **config.get("redis", {})}
        config.setdefault("upstreams", {"default": {"url": upstream.url}})
        node = await start_gateway(config, folder=folder, **options)
        running.append(node)
        return node

    yield start
    for node in running:
        await node.stop()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A client that keeps no cookies and shows bodies as they came."""
    async with aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        yield session
