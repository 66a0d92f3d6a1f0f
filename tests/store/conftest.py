"""Stores of the tests' own, stopped after each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from gateway.store import Redis
from gateway.store.link import LinkOptions

MakeStore = Callable[..., Awaitable[Redis]]


@pytest.fixture
async def make() -> AsyncIterator[MakeStore]:
    """Makes a store for a URL; it has been started."""
    made: list[Redis] = []

    async def start(url: str, *, mirror_bytes: int = 1 << 20, **options: Any) -> Redis:
        options = {"backoff_base": 0.01, "backoff_max": 0.05, **options}
        store = Redis(LinkOptions(url, **options), mirror_bytes=mirror_bytes)
        made.append(store)
        await store.start()
        return store

    yield start
    for store in made:
        await store.stop()
