"""Fixtures: see `tests/harness.py` for what they start."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio
import uvloop
from hypothesis import HealthCheck, settings

from tests.harness import Gateway, UpstreamServer, Valkey, running_upstream, running_valkey, start_gateway

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
